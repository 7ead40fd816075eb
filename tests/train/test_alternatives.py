"""Towers of flexible stride and of flexible depth in real runs, and in the harness."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from alike import ENGINES
from flexiclip_eval.models import open_model
from flexiclip_eval.models.protocol import geometry
from launch import Trained

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


def test_an_exit_is_a_model_of_the_harness(fit: Fit, tmp_path: Path) -> None:
    run = fit(1, *CASES["separate"], folder=tmp_path / "run")
    whole, left = open_model(str(run.folder), "cpu"), open_model(f"{run.folder}+exit1", "cpu")
    assert left.config is not None
    assert left.config.model.image.depth == 1
    for seqhw in (2, 6):
        assert (geometry(left, seqhw).gflops or 0) < (geometry(whole, seqhw).gflops or 0)
    with pytest.raises(UserError, match=r"\+exit3: the image tower cannot be left after block 3 of 2: its exits are 1"):
        open_model(f"{run.folder}+exit3", "cpu")
