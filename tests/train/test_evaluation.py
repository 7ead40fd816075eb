"""In-loop evaluation: called on every rank with the whole model of that very step."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from kit.alike import ENGINES, assert_same_training
from kit.launch import Trained, run_ranks
from kit.overrides import load_last
from safetensors.torch import save_file

from flexiclip.model_folder import LoadedModel, read_weights
from flexiclip.train.logs import read_lines
from flexiclip.train.trainer import train

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
