"""CKA against its definition, written down a second time, slowly."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from flexiclip_eval.analysis.cka import alignment, gram, hsic, layer_names, visit_layers
from kit.evaluation import small_model
from torch import Tensor


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def slow_hsic(k: np.ndarray, m: np.ndarray) -> float:
    """The U-statistic of Song et al. (2012), definition 2: the mean over all ordered choices of four different samples."""
    values = [k[t, u] * (m[t, u] + m[v, w] - 2 * m[t, v]) for t, u, v, w in itertools.permutations(range(len(k)), 4)]
    return float(np.mean(values))


def test_minibatch_cka_equals_the_definition_in_float64() -> None:
    rng = np.random.default_rng(0)
    batches = [[3 + rng.normal(size=(7, 5, 4)), 0.3 * rng.normal(size=(7, 30)), rng.normal(size=(7, 2))] for _ in range(3)]
    for batch in batches:
        batch[1][:, :20] += batch[0].reshape(7, 20)  # the second layer holds the first
    found = alignment(sum(hsic(torch.stack([gram(torch.from_numpy(x).float()) for x in batch])) for batch in batches))
    kernels = [[x.reshape(7, -1) @ x.reshape(7, -1).T for x in batch] for batch in batches]
    summed = [[sum(slow_hsic(of[i], of[j]) for of in kernels) for j in range(3)] for i in range(3)]
    expected = [[summed[i][j] / math.sqrt(summed[i][i] * summed[j][j]) for j in range(3)] for i in range(3)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)
    assert found.diagonal().tolist() == pytest.approx([1, 1, 1], abs=1e-12)
    assert expected[0][1] > 0.5 > abs(expected[0][2])


def test_a_layer_that_tells_no_images_apart_has_no_cka() -> None:
    grams = torch.stack([gram(torch.ones(6, 4)), gram(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))])
    found = alignment(hsic(grams))
    assert found.isnan().tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize("pool", ["tok", "gap", "map"])
def test_layers_are_what_the_blocks_give_one_after_another(pool: str) -> None:
    tower = small_model(pool).image_tower
    seen: dict[int, Tensor] = {}
    with torch.no_grad():
        visit_layers(tower, images(2), 3, seen.__setitem__)
        pooled = tower.pool_tokens(tower.forward_tokens(images(2), 3))
        x = tower.embed_patches(images(2), (3, 3)) + tower.position_embedding((3, 3))
    with torch.no_grad():
        expected = [x]
        x = x if tower.cls is None else torch.cat([tower.cls.expand(2, -1, -1), x], 1)
        for block in tower.blocks:
            x = block(x)
            expected.append(x[:, -9:])
    assert layer_names(tower) == ["stem", "block 1", "block 2", "pooled"]
    assert list(seen) == [0, 1, 2, 3]
    for number, output in enumerate([*expected, pooled]):
        assert torch.equal(seen[number], output)
    assert not tower.blocks[0]._forward_hooks
    assert not tower.blocks[0]._forward_pre_hooks
