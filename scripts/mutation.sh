#!/usr/bin/env bash
# Mutation tests of the core: mutmut changes one expression at a time, and a test has to fail.
#
#   scripts/mutation.sh                         every module of scripts/mutation/core.yaml that changed since its entry in record.yaml
#   scripts/mutation.sh pi_resize schedules     the modules whose path contains one of the words
#   scripts/mutation.sh --report                what the record says, nothing is run
#   scripts/mutation.sh --help                  --workers, --patience, --retest, --fresh
#
# Stop it at any time: the next run continues where this one stopped. Results are kept in .mutation/, and for each finished module in
# scripts/mutation/record.yaml. There every mutant that no test noticed has a verdict: `open`, or `equivalent: reason`, written by
# hand. docs/mutation.json has the counts of the record: killed, survived, equivalent, and the same for each module.

EXTRAS="test,mutation"
# shellcheck source=scripts/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

exec nice -n 10 python scripts/mutation/mutate.py "$@"
