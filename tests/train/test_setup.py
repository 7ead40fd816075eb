"""Building a run: its data and labels, its FLOPs, what it takes over from a checkpoint, and the model that it evaluates."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kit.launch import flexiclip_main, run_ranks
from kit.overrides import load_last
from torch import Tensor

from flexiclip.config import from_dict
from flexiclip.config.schema import Config
from flexiclip.errors import UserError
from flexiclip.model_folder import build_model
from flexiclip.models.text import TextTower
from flexiclip.train.checkpoint import Checkpoint, Facts
from flexiclip.train.engine import MOMENTS, TorchEngine
from flexiclip.train.objectives import Contrastive
from flexiclip.train.ranks import Ranks, RunContext
from flexiclip.train.run_lock import RunLock
from flexiclip.train.setup import (
    Run,
    _engine,
    _tokenizer,
    consolidated,
    data_of,
    flops_so_far,
    labels_of,
    model_to_evaluate,
    pair_flops_of,
    run_schedule,
    say_if_changed,
    set_up,
    step_flops_of,
)

ALONE = Ranks(rank=0, world=1, local_rank=0, device=torch.device("cpu"))


@pytest.fixture
def run(recipe: list[str], tmp_path: Path) -> Iterator[Run]:
    """The tiny recipe before its first step."""
    with RunLock() as lock:
        yield set_up(load_last([*recipe, f"run_dir={tmp_path / 'run'}"]), ALONE, lock, evaluates=True)


def test_set_up_is_ready_for_the_first_step_and_batches_are_those_of_the_remaining_ones(run: Run) -> None:
    assert (run.step, run.checkpoint, run.flops, run.shadow) == (0, None, 0, None)
    assert (run.schedule.horizon.steps, run.schedule.horizon.samples) == (20, 96)
    assert run.loaded.model.training
    everything = list(run.batches())
    assert [tuple(batch.images.shape) for batch in everything] == [(12, 3, 48, 48)] * 20
    epoch = [name for batch in everything[:8] for name in batch.samples]
    assert len(epoch) == len(set(epoch)) == 96, "an epoch of eight steps has each sample once"
    run.step = 18
    for mine, wanted in zip(run.batches(), everything[18:], strict=True):
        assert mine.samples == wanted.samples
        assert torch.equal(mine.images, wanted.images)


def test_set_up_refuses_a_batch_that_its_ranks_cannot_share(recipe: list[str], tmp_path: Path) -> None:
    argv = [key for key in recipe if not key.startswith("train.global_batch_size=")]
    argv += ["train.global_batch_size=13", f"run_dir={tmp_path / 'run'}"]
    assert run_ranks(2, tmp_path / "log", flexiclip_main, "train", *argv) == [2, 2]
    said = (tmp_path / "log.0").read_text().splitlines()[-1]
    assert said == "flexiclip: train.global_batch_size=13 does not divide by the 2 ranks"


def classifier(**sections: Any) -> Config:
    data = {"train": "x.tar", "labels": "cls"}
    model = {"image": {"width": 32, "depth": 1, "heads": 2}, "text": None, "classes": ["cat", "dog"]}
    return from_dict(Config, {"objective": "classification", "data": data, "model": model, **sections})


def test_data_of_and_labels_of_read_what_the_objective_needs(recipe: list[str]) -> None:
    pairs = load_last([*recipe, "data.captions=[txt,alt]"])
    assert data_of(pairs.data, pairs.model) == pairs.data
    assert labels_of(pairs) is None
    classes = classifier()
    assert data_of(classes.data, classes.model) == replace(classes.data, captions=())
    labels = labels_of(classes)
    assert labels is not None
    assert (labels.spec, labels.classes) == ("cls", ("cat", "dog"))


def test_pair_flops_of_a_locked_image_tower_are_a_third_of_its_towers_share(recipe: list[str]) -> None:
    """A tower that trains takes its forward pass three times, for the gradients of activations and of weights too.

    The stem's patches need no gradient, so the image tower takes a little less than three.
    """
    whole = pair_flops_of(load_last(recipe), 96)
    assert list(whole) == [2, 3, 4, 6]
    locked = pair_flops_of(load_last([*recipe, "model.image.lock=true", "model.image.init=x"]), 96)
    for seqhw in (3, 4, 6):
        tower = (whole[seqhw] - whole[2]) / (locked[seqhw] - locked[2])
        assert 2.5 < tower <= 3, seqhw


def test_run_schedule_in_tflops_is_the_longest_within_them(recipe: list[str]) -> None:
    config = load_last([*recipe, "train.steps=0.05 TFLOPs"])
    step = 12 * sum(pair_flops_of(config, 96).values()) / 4  # all four lengths are drawn alike
    assert run_schedule(config, 96).horizon.steps == int(0.05e12 / step) > 10
    assert run_schedule(load_last([*recipe, "train.steps=2 epochs"]), 96).horizon.steps == 16


class WordCounts(TextTower):
    """A text tower without blocks, whose FLOPs cannot be read off."""

    width, context_length = 8, 16

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.stack([(tokens % self.width == i).sum(1).float() for i in range(self.width)], dim=1)

    def save_config(self, folder: Path) -> None:
        """There is no architecture to write."""


def test_step_flops_of_are_those_of_the_steps_length_or_0_where_they_cannot_be_counted(recipe: list[str]) -> None:
    config = load_last(recipe)
    schedule = run_schedule(config, 96)
    tower = build_model(config).model.text_tower
    found, flops = step_flops_of(config, schedule, tower), pair_flops_of(config, 96)
    assert [found(step) for step in range(20)] == [12 * flops[schedule.seqhw(step)] for step in range(20)]
    assert len({found(step) for step in range(20)}) == 4
    foreign = replace(config.model.text, kind="huggingface", name="x")  # type: ignore[type-var]
    uncounted = step_flops_of(replace(config, model=replace(config.model, text=foreign)), schedule, WordCounts())
    assert [uncounted(step) for step in range(20)] == [0] * 20


def test_engine_of_a_checkpoint_goes_on_after_as_many_updates_as_were_taken(recipe: list[str], tmp_path: Path) -> None:
    """Ten steps, three of which were skipped; AdamW corrects its bias by the seven. What was not trained has no moments."""
    config = load_last(recipe)
    loaded = build_model(config)
    objective = Contrastive(loaded.model.train(), config.loss)
    names = [name for name, _ in objective.towers.named_parameters()]
    moments = {f"{key}/{name}": torch.full_like(p, 0.25) for key in MOMENTS for name, p in objective.towers.named_parameters()}
    moments |= {f"scalars/{key}/0": torch.tensor([0.5]) for key in MOMENTS}
    checkpoint: Any = SimpleNamespace(step=10, facts=Facts(10, skipped=3), where="there", moments=lambda: moments)
    engine, scalars = _engine(loaded, objective, config, ALONE, checkpoint)
    assert isinstance(engine, TorchEngine)
    assert len(engine.optimizer.state) == len(names)
    for state in engine.optimizer.state.values():
        assert float(state["step"]) == 7
        assert state["exp_avg"].unique().tolist() == state["exp_avg_sq"].unique().tolist() == [0.25]
    (state,) = scalars.adamw.state.values()
    assert (float(state["step"]), float(state["exp_avg"]), float(state["exp_avg_sq"])) == (7, 0.5, 0.5)

    for key in MOMENTS:
        del moments[f"{key}/{names[3]}"]
    with pytest.raises(
        UserError, match=rf"^there has not trained {names[3]}, which this recipe trains: start a new run from its"
    ):
        _engine(loaded, objective, config, ALONE, checkpoint)


@pytest.mark.parametrize(("kept", "flops"), [(None, 30), (7, 7), (0, 0)])
def test_flops_of_the_steps_so_far_are_those_that_the_checkpoint_says(kept: int | None, flops: int) -> None:
    """A length drawn anew may be another one once the run was made longer. Earlier versions kept none."""
    checkpoint: Any = SimpleNamespace(step=3, facts=Facts(3, flops=kept))
    assert flops_so_far(checkpoint, lambda step: 10) == flops
    assert flops_so_far(None, lambda step: 10) == 0


@pytest.mark.parametrize(("kept", "said"), [("x", False), (None, False), ("y", True)])
def test_say_if_changed(kept: str | None, said: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint of an earlier version kept none."""
    say_if_changed("x", Checkpoint(Path("a"), "there", Facts(7, data_order=kept)), ALONE)
    assert ("the training shards are not those of there" in capsys.readouterr().err) is said


def test_a_tokenizer_that_cannot_be_kept_is_one_line_and_leaves_nothing(recipe: list[str], tmp_path: Path) -> None:
    config = load_last([*(key for key in recipe if not key.startswith("tokenizer.path")), "tokenizer.vocab_size=100"])
    (tmp_path / "tokenizer.model").mkdir()
    with pytest.raises(UserError, match=rf"^run_dir={tmp_path}: cannot write there: Is a directory \("):
        _tokenizer(config.tokenizer, config.data, RunContext(ALONE, bf16=False, folder=tmp_path), None)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.model"]


def test_consolidated_has_every_parameter_and_model_to_evaluate_is_in_eval_mode(run: Run) -> None:
    whole = consolidated(run)
    model = run.loaded.model
    assert whole.keys() == model.state_dict().keys()
    assert all(torch.equal(whole[name], tensor) for name, tensor in model.state_dict().items())
    assert model_to_evaluate(run) is run.loaded
    assert not model.training


def test_model_to_evaluate_of_a_sharding_engine_is_a_second_model_of_the_same_weights(run: Run) -> None:
    run.shadow = replace(run.loaded, model=copy.deepcopy(run.loaded.model).requires_grad_(False).eval())
    with torch.no_grad():
        for p in run.loaded.model.parameters():
            p.add_(1.0)
    found = model_to_evaluate(run)
    assert found is run.shadow
    assert (found.model.training, run.loaded.model.training) == (False, True)
    for name, p in run.loaded.model.named_parameters():
        assert torch.equal(found.model.get_parameter(name), p), name
