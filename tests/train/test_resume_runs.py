"""A run that is stopped, by whatever, goes on with the same command as if it had never been."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from kit.alike import ENGINES
from kit.launch import Command, Trained

from flexiclip.train.logs import read_lines

Fit = Callable[..., Trained]
WholeRun = Callable[[int, str], Trained]

STEPS = {1: 150, 2: 60}
"""By the number of ranks: long enough to be stopped on the way."""


def long(world: int) -> list[str]:
    """Checkpoints fall in mid-epoch: an epoch is eight steps."""
    return [f"train.steps={STEPS[world]}", "train.save_every=21"]


@pytest.fixture(scope="module")
def whole_run(fit: Fit) -> WholeRun:
    """The run that nobody stopped, by number of ranks and engine."""
    return cache(lambda world, engine: fit(world, *long(world), *ENGINES[engine]))


def reached(folder: Path) -> int:
    """The step that metrics.jsonl ends with."""
    rows = read_lines(folder / "metrics.jsonl")
    return int(rows[-1]["step"]) if rows else 0


def newest(folder: Path) -> int:
    """The step of the newest complete checkpoint."""
    return int((folder / "checkpoints" / "latest").read_text().removeprefix("step-"))


def assert_goes_on(fit: Fit, folder: Path, world: int, engine: str, whole: Trained) -> None:
    """The same command once more; everything but the timings equals the run never stopped, bit for bit."""
    assert reached(folder) < STEPS[world], "it was done before it was stopped"
    saved = newest(folder)
    resumed = fit(world, *long(world), *ENGINES[engine], folder=folder)
    assert f"going on from {folder}/checkpoints/step-{saved}\n" in (folder.parent / "log.0").read_text()
    assert resumed.timeless() == whole.timeless()
    assert resumed.samples == whole.samples
    for name, tensor in whole.weights().items():
        assert (resumed.weights()[name] == tensor).all(), name


@pytest.mark.parametrize(("world", "engine"), [(1, "torch"), pytest.param(2, "zero2", marks=pytest.mark.slow)])
def test_kill_9_in_mid_epoch(fit: Fit, recipe: list[str], whole_run: WholeRun, tmp_path: Path, world: int, engine: str) -> None:
    folder = tmp_path / "run"
    with Command() as command:
        command.train(world, tmp_path / "killed", *recipe, f"run_dir={folder}", *long(world), *ENGINES[engine])
        command.wait_for(lambda: reached(folder) >= 24)
        command.kill()
    assert_goes_on(fit, folder, world, engine, whole_run(world, engine))


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_signal_saves_and_leaves(fit: Fit, recipe: list[str], whole_run: WholeRun, tmp_path: Path, number: int) -> None:
    """Sent to the whole process group, as a terminal and a scheduler do, data workers included."""
    folder = tmp_path / "run"
    with Command() as command:
        command.train(1, tmp_path / "stopped", *recipe, f"run_dir={folder}", *long(1), "data.workers=2")
        command.wait_for(lambda: reached(folder) >= 5)
        command.signal_groups(number)
        assert command.wait() == [0]
    assert "stopped by a signal" in (tmp_path / "stopped.0").read_text()
    assert newest(folder) == reached(folder)
    assert_goes_on(fit, folder, 1, "torch", whole_run(1, "torch"))


@pytest.mark.slow
def test_sigterm_under_torchrun(fit: Fit, recipe: list[str], whole_run: WholeRun, tmp_path: Path) -> None:
    """torchrun hands the signal down to its ranks and waits for them to save. Its own exit code then is not ours to choose."""
    folder = tmp_path / "run"
    with Command() as command:
        command.torchrun(2, tmp_path / "stopped", "train", *recipe, f"run_dir={folder}", *long(2), *ENGINES["zero2"])
        command.wait_for(lambda: reached(folder) >= 5)
        command.signal(signal.SIGTERM)
        command.wait()
    assert "stopped by a signal" in (tmp_path / "stopped").read_text()
    assert newest(folder) == reached(folder)
    assert_goes_on(fit, folder, 2, "zero2", whole_run(2, "zero2"))


def test_a_finished_run_says_so_and_never_starts_anew_unasked(fit: Fit, reference: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(reference.folder, folder)
    again = fit(1, folder=folder)
    assert "is complete at step 20: nothing to train" in (tmp_path / "log.0").read_text()
    assert again.rows == reference.rows

    anew = fit(1, "train.resume=never", folder=folder)
    assert anew.timeless() == reference.timeless()
    assert anew.rows != reference.rows, "it was not trained again"
    assert Trained(tmp_path / "run.old-1").rows == reference.rows
    assert not [*tmp_path.glob("run*/.running")], "a claim outlives its run"


def test_a_run_made_longer_is_the_run_that_was_so_long_from_its_start(fit: Fit, tmp_path: Path) -> None:
    """With a schedule that does not look at the end. Under another one the rule is said."""
    still = ["optimizer.schedule=constant", "optimizer.warmup=2", "train.save_every=0"]
    whole = fit(1, *still, "train.steps=5")
    fit(1, *still, "train.steps=3", folder=tmp_path / "run")
    longer = fit(1, *still, "train.steps=60 samples", folder=tmp_path / "run")
    said = (tmp_path / "log.0").read_text()
    assert "train.steps has grown from 3 to 5 at step 3: learning rates and lengths are those of a run that had 5 steps" in said
    assert longer.timeless() == whole.timeless()
    assert longer.samples == whole.samples
    for name, tensor in whole.weights().items():
        assert (longer.weights()[name] == tensor).all(), name


def test_keep_last_keeps_the_newest(fit: Fit) -> None:
    run = fit(1, "train.save_every=4", "train.keep_last=3")
    assert {path.name for path in (run.folder / "checkpoints").iterdir()} == {"step-12", "step-16", "step-20", "latest"}
    assert (run.folder / "checkpoints" / "latest").read_text().strip() == "step-20"


HOW = {"": [], "workers": ["data.workers=2"], "micro": ["train.micro_batch_size=2"], "tokens": ["train.micro_tokens=100"]}
"""What else may change between two lives."""

COVERING = [(1, "torch", "workers"), (1, "zero1", "micro"), (3, "zero3", "tokens")]


def elastic() -> list[Any]:
    """Each engine with each way, and the number of ranks in turn, so that every pair is tested; all but a few are slow."""
    pairs = product(enumerate(ENGINES), enumerate(HOW))
    rest = [(1 + (e + h) % 3, engine, how) for (e, engine), (h, how) in pairs]
    return [*COVERING, *(pytest.param(*each, marks=pytest.mark.slow) for each in rest if each not in COVERING)]


@pytest.mark.parametrize(("world", "engine", "how"), elastic())
def test_saved_on_two_ranks_goes_on_on_any(fit: Fit, saved_on_two: Trained, world: int, engine: str, how: str) -> None:
    run = fit(world, *ENGINES[engine], *HOW[how], f"train.resume={saved_on_two.checkpoint(10)}")
    assert run.samples == saved_on_two.samples[10:]
    assert [row["step"] for row in run.rows] == list(range(11, 21))
    for name, bound in (("loss", 1e-4), ("logit_scale", 1e-4), ("seqhw", 0), ("lr", 0)):
        difference = abs(run.column(name) - saved_on_two.column(name)[10:]).max()
        assert difference <= bound, (name, difference)
    norms = saved_on_two.column("grad_norm")[10:]
    assert abs(run.column("grad_norm") - norms).max() <= 1e-3 * norms.max()
    for name, tensor in saved_on_two.weights().items():
        assert (run.weights()[name] - tensor).abs().max() < 1e-5, name


@pytest.fixture(scope="module")
def saved_on_two(fit: Fit) -> Trained:
    """20 steps under ZeRO-2 on two ranks, with checkpoints at 10 and 20."""
    return fit(2, *ENGINES["zero2"], "train.save_every=10")
