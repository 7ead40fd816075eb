#!/usr/bin/env bash
# The FlexiViT paper's methods on real data: trains, scores, and writes docs/explanation/paper.md with its plots.
#
#   scripts/paper.sh                              ten studies, three seeds: some four hours on 2 CPU cores
#   scripts/paper.sh curricula --seeds 1          one study, one seed; the page keeps what docs/explanation/paper holds of the others
#   scripts/paper.sh --quick --seeds 1            tiny runs into build/paper-quick and its own page: that everything works
#   scripts/paper.sh --jobs 4                     commands at a time, which share the cores; default: 2
#
# Stopped, it goes on where it was: build/paper holds every run and evaluation. A command that fails is named at the end, with its log.
# Needs the npm registry once, for Noto and Fluent.

EXTRAS=analysis
# shellcheck source=scripts/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

export FLEXICLIP_DATA=${FLEXICLIP_DATA:-data}

say "1/2 data: OpenMoji, Noto and Fluent, split by the same concepts, and silhouettes in other textures"
for set in openmoji noto fluent cue-conflict; do
  flexiclip data "$set" --output "$FLEXICLIP_DATA/$set"
done

say "2/2 studies"
python scripts/paper/run.py "$@"
say "done"
