"""The studies' declarations against the recipes, and the commands that they become."""

from __future__ import annotations

from pathlib import Path

import pytest

from flexiclip.config import Config, load
from flexiclip.plan.plan import make_plan
from flexiclip.plan.result import Cluster
from scripts.paper.studies import STUDIES
from scripts.paper.trainings import FULL, QUICK, TRAININGS, Budget, in_order
from scripts.paper.work import PAPER, Task, ready, tasks_of

SEED = 3


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return tasks_of(STUDIES, SEED, FULL, Path("work"))


def _config(task: Task) -> Config:
    command, recipe, *settings = task.command
    assert command == "train"
    return load(recipe, settings)


def test_each_command_comes_once_and_after_what_it_needs(tasks: list[Task]) -> None:
    seen: set[str] = set()
    for task in tasks:
        assert task.name not in seen
        assert task.needs <= seen
        seen.add(task.name)


def test_every_training_is_used(tasks: list[Task]) -> None:
    assert {f"runs/{name}" for name in TRAININGS} == {task.name for task in tasks if task.command[0] == "train"}


def test_what_starts_from_a_run_finds_it_where_it_is_written(tasks: list[Task]) -> None:
    written = {task.name: _config(task).run_dir for task in tasks if task.command[0] == "train"}
    distilled = next(task for task in tasks if task.name == "runs/distilled")
    config = _config(distilled)
    assert config.distillation.teacher == config.model.image.init == written["runs/fixed_10"]
    assert distilled.needs == {"runs/fixed_10"}


def test_each_training_is_a_valid_recipe_of_its_seed_and_length(tasks: list[Task]) -> None:
    steps = set()
    for task in tasks:
        if task.command[0] == "train":
            config = _config(task)
            assert config.seed == SEED
            assert ("noto/" in str(config.data.train)) == task.name.endswith("_to_noto")
            assert ("fluent/" in str(config.data.train)) != task.name.endswith("_to_noto")
            steps.add(str(config.train.steps))
    assert len(steps) == 3  # SAMPLES, TFLOPS, SHORT


def test_evaluations_name_suites_that_exist_and_models_that_are_trained(tasks: list[Task]) -> None:
    for task in tasks:
        if task.command[0] != "train":
            assert Path(task.command[task.command.index("--suite") + 1]).is_file()
            assert len(task.needs) == 1


def test_studies_share_what_they_have_in_common() -> None:
    together = tasks_of(STUDIES, 1, FULL, Path("work"))
    apart = [tasks_of([study], 1, FULL, Path("work")) for study in STUDIES]
    assert len(together) < sum(map(len, apart))
    assert {task.name for task in together} == {task.name for each in apart for task in each}


@pytest.mark.parametrize("budget", [FULL, QUICK])
def test_a_run_of_so_many_flops_sees_so_many_samples(budget: Budget) -> None:
    """The flexible model is one run for comparisons at equal samples and at equal operations."""
    config = load(str(PAPER / "recipes" / "contrastive.yaml"), [f"train.steps={budget.samples} samples"])
    plan = make_plan(config, Cluster(1, 1, "cpu"))
    assert plan.tflops == pytest.approx(budget.tflops, rel=2e-3)


def test_starting_points_come_first() -> None:
    names = [training.name for training in in_order({"lit_flexible", "distilled"})]
    assert names == ["fixed_10", "distilled", "classifier_flexible", "lit_flexible"]


def test_a_task_that_is_alone_waits_for_the_others() -> None:
    a, b, alone = Task("a", ()), Task("b", (), frozenset({"a"})), Task("alone", (), alone=True)
    order = [a, alone, b]
    assert ready(order, set(), set(), 0) is a
    assert ready(order, set(), {"a"}, 1) is None  # b needs a; alone would run beside it
    assert ready(order, {"a"}, {"a"}, 0) is b
    assert ready(order, {"a", "b"}, {"a", "b"}, 0) is alone
    assert ready(order, {"a", "b"}, {"a", "b", "alone"}, 0) is None
