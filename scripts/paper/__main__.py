"""Run the studies of docs/explanation/paper.md: train, evaluate, measure, and write the page.

    python -m scripts.paper                          three seeds of every study; about four hours on 2 CPU cores
    python -m scripts.paper curricula --seeds 1      one seed of one study; the page keeps the records of the others
    python -m scripts.paper --quick --seeds 1        checks that everything works, with tiny runs and a page in build/paper-quick
    python -m scripts.paper --page                   only writes the page, from the records

scripts/paper.sh does the same after it has made the environment and the data. If the command is stopped, the next call continues
there, because build/paper keeps every run and evaluation.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from flexiclip.errors import UserError
from scripts.pages import describe_machine
from scripts.paper import records
from scripts.paper.outcomes import Outcomes
from scripts.paper.page import write_page
from scripts.paper.running import Runner
from scripts.paper.studies import STUDIES
from scripts.paper.study import Study
from scripts.paper.trainings import FULL, QUICK, Budget
from scripts.paper.work import tasks_of

PAGE = Path("docs/explanation/paper.md")
"""The page. The records are in the folder with its name."""


def main() -> int:
    """Run the studies that the command line names. Returns the exit code: 1 if a command failed, 2 for a user's mistake."""
    arguments = _parser().parse_args()
    os.environ.setdefault("FLEXICLIP_DATA", "data")
    try:
        return run(chosen(arguments.study), arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(studies: Sequence[Study], arguments: argparse.Namespace) -> int:
    """Run the studies seed by seed. A failure in one seed does not stop the next. Returns the exit code."""
    budget = QUICK if arguments.quick else FULL
    work = Path("build/paper-quick" if arguments.quick else "build/paper")
    folder, page = (work, work / "paper.md") if arguments.quick else (PAGE.with_suffix(""), PAGE)
    if arguments.page:
        write_page(STUDIES, folder, page)
        return 0
    failed: list[str] = []
    for seed in arguments.seeds:
        failed += _seed(studies, seed, budget, work / f"seed-{seed}", folder, arguments.jobs)
        write_page(STUDIES, folder, page)
        print(f"{page}: seed {seed}", flush=True)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


def _seed(studies: Sequence[Study], seed: int, budget: Budget, work: Path, folder: Path, jobs: int) -> list[str]:
    """Run a seed, and record every study whose commands all succeeded. Returns a line for each command that did not."""
    runner = Runner(work, jobs)
    missing = runner.run(tasks_of(studies, seed, budget, work))
    machine = describe_machine()
    for study in studies:
        if not {task.name for task in tasks_of([study], seed, budget, work)} & set(missing):
            records.add(folder, study.name, budget, seed, study.measure(Outcomes(work / "evaluations")), machine)
    return [f"{name}, see {runner.log(name)}" if runner.log(name).is_file() else f"{name}, not started" for name in missing]


def chosen(names: Sequence[str]) -> list[Study]:
    """Return the studies with these names, or all of them if there are no names. Raises UserError for an unknown name."""
    known = {study.name: study for study in STUDIES}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UserError(f"{name}: no such study{f'; did you mean {near[0]}?' if near else ''}: there are {', '.join(known)}")
    return [study for study in STUDIES if not names or study.name in names]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="*", help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2, help="number of commands at a time, which share the cores")
    parser.add_argument("--quick", action="store_true", help="tiny runs into build/paper-quick, which only show that it works")
    parser.add_argument("--page", action="store_true", help="only write the page, from the records")
    return parser


if __name__ == "__main__":
    sys.exit(main())
