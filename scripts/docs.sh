#!/usr/bin/env bash
# The documentation as a site, in the folder site/. A link, an anchor or a name in the code that does not exist is an error.
#
#   scripts/docs.sh             build it once, strictly, as continuous integration does (`--strict` says the same)
#   scripts/docs.sh --serve     build it again whenever a page changes, and show it at http://127.0.0.1:8000

EXTRAS=${EXTRAS:-docs} # scripts/test.sh has an environment that holds more
# shellcheck source=scripts/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

export NO_MKDOCS_2_WARNING=1 # an announcement of the theme's, in red
case ${1:-} in
  --serve) exec mkdocs serve --strict ;;
  "" | --strict) ;;
  *) stop "$1: there is no such option; --serve shows the pages while you write them" ;;
esac

say "site: pages, links, anchors and references"
mkdocs build --strict
say "done: site/index.html"
