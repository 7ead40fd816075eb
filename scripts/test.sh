#!/usr/bin/env bash
# Style, types, the documentation site and tests, as continuous integration runs them.
#
#   scripts/test.sh                             all but the slow tests
#   scripts/test.sh -m slow                     the slow ones; arguments go to pytest
#   scripts/test.sh tests/models -k resize

EXTRAS="test"
# shellcheck source=scripts/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
# shellcheck source=scripts/_browser.sh
source "$(dirname "${BASH_SOURCE[0]}")/_browser.sh"

# Two files of tests side by side, and up to three ranks in a test: one thread each, or they fight over the cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false

say "ruff"
ruff check .
ruff format --check .
say "mypy"
mypy
EXTRAS=$EXTRAS scripts/docs.sh
export FLEXICLIP_SITE=$ROOT/site # tests/test_site.py need not build it once more
say "pytest"
pytest -n 2 --dist loadfile "$@"
say "done"
