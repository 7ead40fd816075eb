#!/usr/bin/env bash
# Fuzzes the readers of files from other sources. The exit code is 1 if anything is found.
#
#   scripts/fuzz.sh index --minutes 10 --seed 1    one reader; also: samples, recipe, weights
#   scripts/fuzz.sh weights --replay FILE          runs one saved input again
#   scripts/fuzz.sh --help                         all options
#
# Findings are written into runs/fuzz. docs/explanation/security.md says what counts as one.

EXTRAS="test"
# shellcheck source=scripts/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

exec python -m scripts.fuzz "$@"
