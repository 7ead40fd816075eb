#!/usr/bin/env bash
# Runs the benchmarks, which compare flexiclip with the real code of other libraries, and writes docs/explanation/benchmarks.md.
#
#   scripts/bench.sh                            all subjects; takes hours on 2 CPU cores, which should be otherwise idle
#   scripts/bench.sh losses loader              these subjects; the page keeps the records of the others
#   scripts/bench.sh --quick                    checks that everything runs, with small sizes and a page in build/bench-quick
#
# Subjects that fail are listed at the end, and the page keeps their last records.

EXTRAS="bench"
# shellcheck source=scripts/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

QUICK=()
FOLDER=docs/explanation/benchmarks
PAGE=docs/explanation/benchmarks.md
if [ "${1:-}" = --quick ]; then
  QUICK=(--quick)
  FOLDER=build/bench-quick
  PAGE=$FOLDER/benchmarks.md
  shift
fi

SUBJECTS=("$@")
if [ ${#SUBJECTS[@]} = 0 ]; then
  SUBJECTS=(training_step flexible_training attention pi_resize losses loader sweep retrieval_memory encoders startup ranks growth compile gradcache)
fi

mkdir -p "$FOLDER"
FAILED=()
for subject in "${SUBJECTS[@]}"; do
  [ -f "scripts/bench/$subject.py" ] || stop "no subject $subject: there are $(cd scripts/bench && echo ./*.py)"
  say "$subject"
  python "scripts/bench/$subject.py" "${QUICK[@]}" --output "$FOLDER/$subject.json" || FAILED+=("$subject")
done
python scripts/bench/document.py "$FOLDER" --output "$PAGE"
if [ ${#FAILED[@]} != 0 ]; then
  stop "failed: ${FAILED[*]}"
fi
say "done: $PAGE"
