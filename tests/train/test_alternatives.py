"""Towers of flexible stride and of flexible depth in real runs, and in the harness."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flexiclip_eval.models.protocol import geometry
from flexiclip_eval.models.sources import open_model
from kit.alike import ENGINES
from kit.launch import Trained

from flexiclip.errors import UserError

Fit = Callable[..., Trained]

CASES = {
    "stride": ["model.image.flexible=stride", "patch.seqhw=[3,4,6]"],
    "shared": ["model.image.exits=[1]"],
    "separate": ["model.image.exits=[1]", "model.image.exit_heads=separate", "model.image.pool=map"],
}


SLOW = [pytest.param(*each, marks=pytest.mark.slow) for each in (("shared", "zero3"), ("separate", "zero1"))]


@pytest.mark.parametrize(("case", "engine"), [("stride", "torch"), *SLOW])
def test_ranks_and_micro_batches_equal_the_big_batch(fit: Fit, case: str, engine: str) -> None:
    whole = fit(1, *CASES[case])
    parts = fit(2, *CASES[case], *ENGINES[engine], "train.micro_batch_size=2")
    np.testing.assert_allclose(parts.column("loss"), whole.column("loss"), rtol=0, atol=1e-5)
    weights = parts.weights()
    for name, tensor in whole.weights().items():
        assert (weights[name] - tensor).abs().max() < 1e-5, name
    assert whole.column("loss")[-1] < whole.column("loss")[0]


@pytest.mark.parametrize("engine", ["zero1", pytest.param("zero3", marks=pytest.mark.slow)])
def test_a_tower_of_flexible_stride_goes_on_under_deepspeed(fit: Fit, tmp_path: Path, engine: str) -> None:
    """ZeRO makes its moments in a step of its own, which must be at a length that the tower has."""
    settings = [*CASES["stride"], *ENGINES[engine], "train.save_every=8"]
    whole = fit(1, *settings)
    shutil.copytree(whole.folder, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "latest").write_text("step-16\n")
    resumed = fit(1, *settings, folder=tmp_path / "run")
    assert "going on from" in (tmp_path / "log.0").read_text()
    assert resumed.timeless() == whole.timeless()
    for name, tensor in whole.weights().items():
        assert (resumed.weights()[name] == tensor).all(), name


def test_an_exit_is_a_model_of_the_harness(fit: Fit, tmp_path: Path) -> None:
    run = fit(1, *CASES["separate"], folder=tmp_path / "run")
    whole, left = open_model(str(run.folder), "cpu"), open_model(f"{run.folder}+exit1", "cpu")
    assert left.config is not None
    assert left.config.model.image.depth == 1
    for seqhw in (2, 6):
        assert (geometry(left, seqhw).gflops or 0) < (geometry(whole, seqhw).gflops or 0)
    with pytest.raises(UserError, match=r"\+exit3: the image tower cannot be left after block 3 of 2: its exits are 1"):
        open_model(f"{run.folder}+exit3", "cpu")
