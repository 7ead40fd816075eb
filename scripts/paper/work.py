"""Turns studies into the `flexiclip` commands of one seed, in an order that is possible."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.paper.study import Evaluation, Study
from scripts.paper.trainings import Budget, Training, folders_filled, in_order

PAPER = Path(os.path.relpath(Path(__file__).parent))
"""The path of scripts/paper, relative to the working directory, which is the root of the repository."""


@dataclass(frozen=True)
class Task:
    """One command. Its name, such as `runs/flexible`, `eval/...` or `analyze/...`, also identifies its log and its results."""

    name: str
    command: tuple[str, ...]
    """The words after `flexiclip`."""
    needs: frozenset[str] = frozenset()
    alone: bool = False


def tasks_of(studies: Iterable[Study], seed: int, budget: Budget, folder: Path) -> list[Task]:
    """Return every training and evaluation once, each after those that it needs. folder: the seed's folder."""
    studies = list(studies)
    evaluations = dict.fromkeys(each for study in studies for each in study.evaluations)
    trainings = in_order({name for study in studies for name in study.trainings})
    return [*(_train(each, seed, budget, folder) for each in trainings), *(_evaluate(each, folder) for each in evaluations)]


def _train(training: Training, seed: int, budget: Budget, folder: Path) -> Task:
    places = {name: str(folder / "runs" / name) for name in training.needs}
    settings = [folders_filled(budget.fill(setting), places) for setting in training.settings]
    recipe = str(PAPER / "recipes" / f"{training.recipe}.yaml")
    command = ("train", recipe, f"run_dir={folder / 'runs' / training.name}", f"seed={seed}", *settings)
    return Task(f"runs/{training.name}", command, frozenset(f"runs/{name}" for name in training.needs))


def _evaluate(evaluation: Evaluation, folder: Path) -> Task:
    model = str(folder / "runs" / evaluation.model)
    where = (
        "--suite",
        str(PAPER / "suites" / f"{evaluation.suite}.yaml"),
        "--output",
        str(folder / "evaluations" / evaluation.name),
    )
    how = (
        "--seqhw",
        ",".join(map(str, evaluation.lengths)),
        "--workers",
        "1",
        *(os.path.expandvars(each) for each in evaluation.options),
    )
    needs = frozenset({f"runs/{evaluation.training}"})
    return Task(evaluation.name, (evaluation.command, model, *where, *how), needs, evaluation.alone)


def ready(tasks: Sequence[Task], done: set[str], started: set[str], running: int) -> Task | None:
    """Return the next task that can start while `running` others run. None if there is none.

    A task that must run alone starts only if no other task runs or can start.
    """
    open_tasks = [task for task in tasks if task.name not in started and task.needs <= done]
    together = [task for task in open_tasks if not task.alone]
    if together:
        return together[0]
    return open_tasks[0] if open_tasks and not running else None
