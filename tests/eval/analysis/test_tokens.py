"""The tokens of an image, and how they are compared over lengths and places."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flexiclip_eval.analysis.tokens import alike, cell, seed_map, unit_tokens
from kit.evaluation import small_model
from torch import Tensor


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 24, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pool", ["tok", "gap", "map"])
def test_tokens_are_those_after_the_last_norm_without_the_class_token(pool: str) -> None:
    tower = small_model(pool).image_tower
    with torch.no_grad():
        x = tower.embed_patches(images(2), (3, 3)) + tower.position_embedding((3, 3))
        x = x if tower.cls is None else torch.cat([tower.cls.expand(2, -1, -1), x], 1)
        for block in tower.blocks:
            x = block(x)
        expected = tower.norm(x)[:, -9:].reshape(2, 3, 3, 16)
    found = unit_tokens(SimpleNamespace(tower=tower), images(2), 3)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected / expected.norm(dim=-1, keepdim=True))


def test_tokens_are_compared_place_by_place() -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.normal(size=(2, side, side, 5)) for side in (2, 6))
    one, other = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (one, other))
    same, rest = [], []
    for image, i, j, k, m in itertools.product(range(2), range(2), range(2), range(6), range(6)):
        inside = k == int((i + 0.5) * 3) and m == int((j + 0.5) * 3)
        (same if inside else rest).append(one[image, i, j] @ other[image, k, m])
    found = alike(torch.from_numpy(one), torch.from_numpy(other))
    assert found == (pytest.approx(np.mean(same)), pytest.approx(np.mean(rest)))
    assert len(same) == 8
    assert alike(torch.from_numpy(one), torch.from_numpy(one))[0] == pytest.approx(1)
    cosines = seed_map(torch.from_numpy(one[0]), torch.from_numpy(one[0]), (0.5, 0.25))
    assert cell((0.5, 0.25), 2) == (1, 0)
    assert cell((1.0, 1.0), 2) == (1, 1)
    assert float(cosines[1, 0]) == pytest.approx(1)
    assert float(cosines[0, 1]) == pytest.approx(one[0, 1, 0] @ one[0, 0, 1])
