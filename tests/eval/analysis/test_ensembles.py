"""Ensembles over lengths: their means, their cost, and the sentence about them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from flexiclip_eval.analysis.ensembles import Ensemble, TaskEnsembles, _sentence, at_cost, mean_rows, subsets


def test_ensembles_are_means_and_compared_at_their_cost() -> None:
    rows = {n: F.normalize(torch.randn(4, 3, generator=torch.Generator().manual_seed(n)), dim=-1) for n in (2, 3, 6)}
    assert torch.equal(mean_rows(rows, [3]), rows[3])
    torch.testing.assert_close(mean_rows(rows, [2, 3, 6]), (rows[2] + rows[3] + rows[6]) / 3)
    assert subsets([2, 3, 6]) == [(2, 3), (2, 6), (3, 6), (2, 3, 6)]
    assert subsets([2, 3, 6, 8])[6:] == [(2, 3, 6), (2, 3, 6, 8)], "after the six pairs"
    curve = [(1.0, 0.2), (4.0, 0.4), (16.0, 0.5)]
    assert [at_cost(curve, cost) for cost in (1, 2, 4, 8, 16, 99)] == pytest.approx([0.2, 0.3, 0.4, 0.45, 0.5, 0.5])


def test_the_sentence_of_ensembles_says_the_standard_error_of_a_value() -> None:
    """0.2 of 400 queries: sqrt(0.2 * 0.8 / 400) = 0.02."""
    task = TaskEnsembles("toys", "zeroshot_retrieval", "acc1", 400, {2: 0.1, 3: 0.2}, [Ensemble((2, 3), 9.0, 0.25, 0.25, 0.2)])
    assert "+5.0 points from one length at equal cost on average" in _sentence(task)
    assert _sentence(task).endswith("a value has a standard error of 2.0 points.")
