#!/usr/bin/env bash
# Mutation tests of the core: mutmut changes one expression at a time, and a test has to fail for each change.
#
#   scripts/mutation.sh                         every module in scripts/mutation/core.yaml that changed since its last record
#   scripts/mutation.sh pi_resize schedules     the modules whose path contains one of the words
#   scripts/mutation.sh --report                only print the record
#   scripts/mutation.sh --help                  the options --workers, --slack-s, --retest and --fresh
#
# You can stop it at any time; the next run continues there. Results are kept in .mutation/, and those of finished modules in
# scripts/mutation/record.yaml. That file has a verdict for every mutant that no test noticed: `open`, or `equivalent: reason`.
# Verdicts are written by hand. docs/mutation.json has the counts: killed, survived and equivalent, also for each module.

EXTRAS="test,mutation"
# shellcheck source=scripts/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

exec nice -n 10 python -m scripts.mutation "$@"
