#!/usr/bin/env bash
# Tests the FlexiViT paper's methods on real data: trains, evaluates, and writes docs/explanation/paper.md with its plots.
#
#   scripts/paper.sh                              ten studies with three seeds; about four hours on 2 CPU cores
#   scripts/paper.sh curricula --seeds 1          one study with one seed; the page keeps the records of the others
#   scripts/paper.sh --quick --seeds 1            checks that everything works, with tiny runs and a page in build/paper-quick
#   scripts/paper.sh --jobs 4                     runs four commands at a time, which share the cores (default: 2)
#
# If it is stopped, the next run continues there, because build/paper keeps every run and evaluation. Commands that fail are listed
# at the end, with their logs. The first run needs the npm registry, for Noto and Fluent.

EXTRAS=analysis
# shellcheck source=scripts/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

export FLEXICLIP_DATA=${FLEXICLIP_DATA:-data}

say "1/2 data: OpenMoji, Noto and Fluent, split by the same concepts, and silhouettes in other textures"
for set in openmoji noto fluent cue-conflict; do
  flexiclip data "$set" --output "$FLEXICLIP_DATA/$set"
done

say "2/2 studies"
python -m scripts.paper "$@"
say "done"
