#!/usr/bin/env bash
# Makes the curves of docs/explanation/results.md. They compare a flexible model with one that was trained at a single length,
# also after its kernel was resized in two ways. They are scored on concepts that no model was trained on, and in a drawing style
# that no model was trained on.
#
#   scripts/curves.sh                              about 15 minutes on 2 CPU cores; existing data and runs are reused
#
# The first run needs the npm registry, for Noto. The results are in runs/curves: report.html, results.csv and the plots.

EXTRAS=quickstart
# shellcheck source=scripts/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

export FLEXICLIP_DATA=${FLEXICLIP_DATA:-data}

say "1/3 data: OpenMoji and Noto, split by the same concepts"
flexiclip data openmoji --output "$FLEXICLIP_DATA/openmoji"
flexiclip data noto --output "$FLEXICLIP_DATA/noto"

say "2/3 training: one patch size per step, and one for all"
flexiclip train openmoji_flexilit
flexiclip train openmoji_fixed

say "3/3 evaluation: every model at every length"
flexiclip eval runs/openmoji_flexilit runs/openmoji_fixed runs/openmoji_fixed+pi runs/openmoji_fixed+bilinear \
  --suite openmoji --suite noto --seqhw 3,4,5,6,10,12,15 --output runs/curves
