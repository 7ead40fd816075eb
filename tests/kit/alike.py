"""When two runs of the tiny recipe are the same training."""

from __future__ import annotations

import numpy as np

from kit.launch import Trained

ENGINES = {
    "torch": ["engine.kind=torch"],
    **{f"zero{stage}": ["engine.kind=deepspeed", f"engine.zero_stage={stage}"] for stage in range(4)},
}
"""Overrides that choose an engine, by name."""


def assert_same_training(run: Trained, reference: Trained, loss: float = 1e-4, norm: float = 1e-4) -> None:
    """The same samples and lengths at every step, losses within `loss`, gradient norms within the fraction `norm`."""
    assert [row["step"] for row in run.rows] == [row["step"] for row in reference.rows] == list(range(1, 21))
    assert run.samples == reference.samples
    assert [row["seqhw"] for row in run.rows] == [row["seqhw"] for row in reference.rows]
    assert [row["lr"] for row in run.rows] == [row["lr"] for row in reference.rows]
    np.testing.assert_allclose(run.column("loss"), reference.column("loss"), rtol=0, atol=loss)
    np.testing.assert_allclose(run.column("grad_norm"), reference.column("grad_norm"), rtol=norm, atol=0)
    np.testing.assert_allclose(run.column("logit_scale"), reference.column("logit_scale"), rtol=0, atol=loss)


def assert_same_weights(run: Trained, reference: Trained, tolerance: float = 1e-5) -> None:
    """Every parameter of RUN/model, frozen ones and the scalars too."""
    weights, expected = run.weights(), reference.weights()
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(weights[name], tensor, rtol=0, atol=tolerance, err_msg=name)
