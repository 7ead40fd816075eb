#!/usr/bin/env bash
# Every benchmark, ours beside the peers' real code, and docs/explanation/benchmarks.md out of what they found.
#
#   scripts/bench.sh                            all subjects: some hours on 2 CPU cores, which should do nothing else meanwhile
#   scripts/bench.sh losses loader              these subjects; the page keeps what docs/explanation/benchmarks holds of the others
#   scripts/bench.sh --quick                    small sizes, into build/bench-quick and its own page: that everything runs
#
# A subject that fails is named at the end; the page keeps its last record.

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
