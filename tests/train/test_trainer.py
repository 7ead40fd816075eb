"""What happens around the steps: when a checkpoint is due, what it holds while training goes on, and the model's mode after.

An evaluation in the loop is called on every rank, with the whole model of that very step.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kit.alike import ENGINES, assert_same_training
from kit.launch import Trained, run_ranks
from kit.overrides import load_last
from safetensors.torch import save_file
from test_step import ALONE
from torch import nn

from flexiclip.errors import RunError
from flexiclip.model_folder import LoadedModel, build_model, read_weights
from flexiclip.schedules import Horizon
from flexiclip.train import trainer as recorder
from flexiclip.train.checkpoint import open_checkpoint
from flexiclip.train.engine import ScalarOptimizer, TorchEngine
from flexiclip.train.logs import read_lines
from flexiclip.train.nonfinite import Skips
from flexiclip.train.objectives import Contrastive
from flexiclip.train.ranks import RunContext
from flexiclip.train.stores import LocalStore
from flexiclip.train.trainer import Recorder, train

Make = Callable[..., tuple[Recorder, Any]]


class SlowStore(LocalStore):
    """A disk that begins to write when it is told to."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.go = threading.Event()

    def aside(self, name: str) -> Path:
        assert self.go.wait(20)
        return super().aside(name)


@pytest.fixture
def make(recipe: list[str], tmp_path: Path) -> Make:
    """A recorder at step 0 of a run of 20 of the tiny recipe, with a real model, engine and store, and that run."""

    def build(*overrides: str, evaluators: Any = None, store: LocalStore | None = None) -> tuple[Recorder, Any]:
        config = load_last([*recipe, *overrides])
        loaded = build_model(config)
        objective = Contrastive(loaded.model.train(), config.loss)
        run = SimpleNamespace(
            config=config,
            context=RunContext(ALONE, bf16=False, folder=tmp_path),
            loaded=loaded,
            stepper=SimpleNamespace(
                engine=TorchEngine(objective.towers, config.optimizer, ALONE),
                scalars=ScalarOptimizer(objective.scalars, config.optimizer, 100.0),
            ),
            schedule=SimpleNamespace(horizon=Horizon(20, 12, 96)),
            step_flops=lambda step: 0,
            sources=None,
            data_order=None,
            store=store or LocalStore(tmp_path / "checkpoints"),
            checkpoint=None,
            step=0,
            skips=Skips("stop"),
            flops=0,
            shadow=None,
        )
        return Recorder(run, evaluators), run  # type: ignore[arg-type]

    return build


def test_a_checkpoint_by_the_clock_is_due_after_so_many_minutes(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(recorder.time, "monotonic", lambda: clock[0])
    taken, run = make("train.save_every=2.5 minutes", "train.save_in_background=false")
    for passed, due in ((0, False), (149.0, False), (150.5, True), (1000.0, True)):
        clock[0] = 1000.0 + passed
        assert taken.save_is_due() is due, passed
    clock[0] = 3000.0
    run.step = 7
    taken.save()
    for passed, due in ((0, False), (149.0, False), (151.0, True)):
        clock[0] = 3000.0 + passed
        assert taken.save_is_due() is due, f"{passed} s after the last one"
    with taken:
        pass


@pytest.mark.parametrize(
    ("every", "steps"),
    [("3", [3, 6, 9, 12, 15, 18]), ("0", []), ("25%", [5, 10, 15, 20]), ("1 epoch", [8, 16]), ("48 samples", [4, 8, 12, 16, 20])],
)
def test_a_checkpoint_or_an_evaluation_by_steps_is_due_at_their_multiples(make: Make, every: str, steps: list[int]) -> None:
    both = [f"train.save_every={every}", *([f"eval.every={every}"] if every != "0" else [])]
    taken, run = make(*both)
    due: dict[str, list[int]] = {"save": [], "evaluate": []}
    for run.step in range(1, 21):
        due["save"] += [run.step] if taken.save_is_due() else []
        due["evaluate"] += [run.step] if taken.evaluation_is_due() else []
    assert due == {"save": steps, "evaluate": steps}
    with taken:
        pass


def spoil(run: Any) -> None:
    """Another step would do no more: weights, moments and scalars change where they are."""
    for p in run.loaded.model.parameters():
        p.data.add_(1.0)
    for state in (*run.stepper.engine.optimizer.state.values(), *run.stepper.scalars.adamw.state.values()):
        for tensor in state.values():
            tensor.add_(1.0)


def step_once(run: Any) -> None:
    for p in run.loaded.model.parameters():
        p.grad = torch.ones_like(p)
    run.stepper.engine.step(1e-2)
    run.stepper.scalars.step(1e-2, [torch.ones(1)])
    run.step += 1


def test_a_checkpoint_in_the_background_holds_what_was_when_it_was_begun(make: Make, tmp_path: Path) -> None:
    """Training goes on before the first byte is written."""
    store = SlowStore(tmp_path / "slow")
    taken, run = make("train.save_in_background=true", store=store)
    with taken:
        step_once(run)
        weights = {name: p.detach().clone() for name, p in run.loaded.model.named_parameters()}
        moments = {name: t.clone() for name, t in run.stepper.engine.moments()}
        moments |= {f"scalars/{name}": t.clone() for name, t in run.stepper.scalars.state().items()}
        taken.save()
        spoil(run)
        store.go.set()
    checkpoint = open_checkpoint(store.root / "step-1")
    for held, expected in ((checkpoint.weights(), weights), (checkpoint.moments(), moments)):
        assert held.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(held[name], tensor), f"{name} is that of a later step"


def test_without_save_in_background_a_checkpoint_is_waited_for(make: Make, tmp_path: Path) -> None:
    store = SlowStore(tmp_path / "slow")
    taken, run = make("train.save_in_background=false", store=store)
    with taken:
        step_once(run)
        threading.Timer(0.3, store.go.set).start()
        taken.save()
        assert store.latest() == "step-1"


def test_a_checkpoint_that_cannot_be_written_is_said_and_the_last_one_must_be(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    taken, run = make("train.save_in_background=false", store=LocalStore(tmp_path / "file" / "checkpoints"))
    with taken:
        step_once(run)
        taken.save()
        assert "checkpoint step-1 could not be written: Not a directory: there is no earlier one" in capsys.readouterr().err
        with pytest.raises(RunError, match="checkpoint step-1 could not be written"):
            taken.save_last()


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


@pytest.mark.parametrize("locked", [[], ["text"], ["image"]], ids=["open", "text locked", "image locked"])
def test_after_an_evaluation_every_part_of_the_model_is_in_the_mode_that_it_was_in(
    make: Make, reference: Trained, locked: list[str]
) -> None:
    """Or dropout would be off for good; what is locked stays in eval mode."""
    seen: list[dict[str, bool]] = []

    def evaluate(loaded: LoadedModel) -> dict[str, float]:
        seen.append(modes(loaded.model))
        return {"toy": 1.0}

    locks = [f"model.{half}.{key}" for half in locked for key in ("lock=true", f"init={reference.folder}")]
    taken, run = make(*locks, evaluators=evaluate)
    before = modes(run.loaded.model)
    assert before[""]
    assert all(before[f"{half}_tower"] is (half not in locked) for half in ("image", "text"))
    with taken:
        taken.evaluate()
    assert not any(seen[0].values())
    assert modes(run.loaded.model) == before


STEPS = [6, 12, 18, 20]


def train_and_keep_what_is_evaluated(folder: str, *argv: str) -> int:
    """Train; each evaluation leaves the weights that it was handed in FOLDER/RANK-NUMBER.safetensors."""
    number = 0

    def keep(loaded: LoadedModel) -> dict[str, float]:
        nonlocal number
        assert not loaded.model.training
        weights = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
        save_file(weights, f"{folder}/{os.environ['RANK']}-{number}.safetensors")
        number += 1
        with torch.no_grad():
            length = loaded.model.encode_image(torch.ones(2, 3, 48, 48), seqhw=3).norm()
        return {"toy/length": float(length), "toy/number": float(number)}

    train(load_last(argv), keep)
    return 0


@pytest.mark.parametrize(("world", "engine"), [(1, "torch"), (2, "zero3")])
def test_every_rank_evaluates_the_model_that_the_checkpoint_holds(
    recipe: list[str], reference: Trained, tmp_path: Path, world: int, engine: str
) -> None:
    run = Trained(tmp_path / "run")
    argv = [*recipe, f"run_dir={run.folder}", "eval.every=6", "train.save_every=6", "train.keep_last=9", *ENGINES[engine]]
    codes = run_ranks(world, tmp_path / "log", train_and_keep_what_is_evaluated, str(tmp_path), *argv)
    assert codes == [0] * world, (tmp_path / "log.0").read_text()

    rows = read_lines(run.folder / "eval.jsonl")
    assert [row["step"] for row in rows] == STEPS
    assert [row["toy/number"] for row in rows] == [1, 2, 3, 4]
    assert len({row["toy/length"] for row in rows}) == 4, "the model does not change"
    for number, step in enumerate(STEPS):
        saved = read_weights(run.checkpoint(step) / "model" / "model.safetensors")
        for rank in range(world):
            seen = read_weights(tmp_path / f"{rank}-{number}.safetensors")
            assert seen.keys() == saved.keys()
            for name, tensor in saved.items():
                assert torch.equal(seen[name], tensor), (step, rank, name)
    last = read_weights(run.checkpoint(20) / "model" / "model.safetensors")
    assert all(torch.equal(tensor, last[name]) for name, tensor in run.weights().items())
    assert_same_training(run, reference)  # evaluation leaves no trace in it


def test_what_a_death_at_the_very_end_left_out_is_made_up_for(recipe: list[str], tmp_path: Path) -> None:
    """The last checkpoint is there, RUN/model and the last evaluation are not; the same command once more."""
    run = Trained(tmp_path / "run")
    started = (train_and_keep_what_is_evaluated, str(tmp_path), *recipe, f"run_dir={run.folder}")
    assert run_ranks(1, tmp_path / "first", *started) == [0]
    before = read_lines(run.folder / "eval.jsonl")
    weights = run.weights()
    assert [row["step"] for row in before] == [20]
    shutil.rmtree(run.folder / "model")
    (run.folder / "eval.jsonl").unlink()
    assert run_ranks(1, tmp_path / "second", *started) == [0]
    assert read_lines(run.folder / "eval.jsonl") == before
    for name, tensor in Trained(run.folder).weights().items():
        assert torch.equal(tensor, weights[name]), name
    assert run_ranks(1, tmp_path / "third", *started) == [0]
    assert read_lines(run.folder / "eval.jsonl") == before, "what is whole is left alone"
