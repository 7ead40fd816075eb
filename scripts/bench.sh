#!/usr/bin/env bash
# Runs the benchmarks, which compare flexiclip with the real code of other libraries, and writes docs/explanation/benchmarks.md.
#
#   scripts/bench.sh                            all subjects; takes hours on 2 CPU cores, which should be otherwise idle
#   scripts/bench.sh losses loader              these subjects; the page keeps the records of the others
#   scripts/bench.sh --quick                    checks that everything runs, with small sizes and a page in build/bench-quick
#
# Subjects that fail are listed at the end, and the page keeps their last records. `python -m scripts.bench --help` has all options.

EXTRAS="bench"
# shellcheck source=scripts/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

exec python -m scripts.bench "$@"
