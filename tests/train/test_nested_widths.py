"""A run with losses at nested widths: over micro-batches and ranks the same as the big batch, and its prefixes are of use."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from kit.alike import ENGINES
from kit.launch import Trained

Fit = Callable[..., Trained]

NESTED = "loss.widths=[4, 8]"


def test_micro_batches_and_ranks_equal_the_big_batch(fit: Fit, reference: Trained) -> None:
    whole = fit(1, NESTED)
    parts = fit(2, NESTED, *ENGINES["zero1"], "train.micro_batch_size=2")
    np.testing.assert_allclose(parts.column("loss"), whole.column("loss"), rtol=0, atol=1e-5)
    weights = parts.weights()
    for name, tensor in whole.weights().items():
        assert (weights[name] - tensor).abs().max() < 1e-5, name
    assert abs(whole.column("loss")[0] - reference.column("loss")[0]) > 1e-3, "another loss than that of the whole width"
