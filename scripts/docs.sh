#!/usr/bin/env bash
# Builds the documentation as a site, in the folder site/. A link to a page, an anchor or a name in the code that does not exist
# is an error.
#
#   scripts/docs.sh             build it once, strictly, as continuous integration does (`--strict` is the same)
#   scripts/docs.sh --serve     show it at http://127.0.0.1:8000, and build it again when a page changes

EXTRAS=${EXTRAS:-docs} # scripts/test.sh sets EXTRAS, because its environment has more packages
# shellcheck source=scripts/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

export NO_MKDOCS_2_WARNING=1 # hides an announcement of the theme, printed in red
case ${1:-} in
  --serve) exec mkdocs serve --strict ;;
  "" | --strict) ;;
  *) stop "$1: there is no such option; --serve shows the pages while you write them" ;;
esac

say "site: pages, links, anchors and references"
mkdocs build --strict
say "done: site/index.html"
