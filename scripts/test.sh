#!/usr/bin/env bash
# Checks style and types, builds the documentation, and runs the tests, as continuous integration does.
#
#   scripts/test.sh                             all tests except the slow ones
#   scripts/test.sh -m slow                     the slow tests; arguments go to pytest
#   scripts/test.sh tests/models -k resize      some of the tests

EXTRAS="test"
# shellcheck source=scripts/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
# shellcheck source=scripts/_browser.sh
source "$(dirname "${BASH_SOURCE[0]}")/_browser.sh"

# Two test files run at the same time, and a test may start three ranks. With one thread each they do not compete for the cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false

say "ruff"
ruff check .
ruff format --check .
say "mypy, while the documentation is built (log: $VENV/mypy.log)"
mypy >"$VENV/mypy.log" 2>&1 &
MYPY=$!
EXTRAS=$EXTRAS scripts/docs.sh || { kill "$MYPY" || true; exit 1; }
wait "$MYPY" || stop "mypy: $(cat "$VENV/mypy.log")"
export FLEXICLIP_SITE=$ROOT/site # so that tests/test_site.py does not build it again
say "pytest"
pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
say "done"
