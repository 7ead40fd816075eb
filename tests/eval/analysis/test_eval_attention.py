"""Relevance maps against the rule of their paper, worked out head by head; their focus and their agreement by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flexiclip_eval.analysis.attention import agreement, half_mass, recorded_attention, relevance
from kit.evaluation import small_model
from torch import Tensor

from flexiclip.models.clip import FlexiCLIP


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def slow_relevance(model: FlexiCLIP, x: Tensor, side: int, text_z: Tensor | None) -> np.ndarray:
    """Head by head, with gradients kept at each head's weights; then (I + A2') (I + A1') in float64. None: the own features."""
    tower = model.image_tower
    with torch.no_grad():
        t = tower.embed_patches(x, (side, side)) + tower.position_embedding((side, side))
        t = t if tower.cls is None else torch.cat([tower.cls, t], 1)
    kept: list[Tensor] = []

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = []
        for one_q, one_k, one_v in zip(q.chunk(2, -1), k.chunk(2, -1), v.chunk(2, -1), strict=True):
            kept.append(torch.softmax(one_q @ one_k.T / math.sqrt(8), -1))
            kept[-1].retain_grad()
            heads.append(kept[-1] @ one_v)
        return torch.cat(heads, -1)

    t = t[0]
    for block in tower.blocks:
        q, k, v = block.attn.qkv(block.norm1(t)).chunk(3, -1)
        t = t + block.attn.proj(attend(q, k, v))
        t = t + block.mlp(block.norm2(t))
    t = tower.norm(t)
    if tower.map_head is not None:
        head = tower.map_head
        k, v = head.kv(t).chunk(2, -1)
        pooled = head.proj(attend(head.q(head.probe)[0], k, v))
        pooled = (pooled + head.mlp(head.norm(pooled)))[0]
    else:
        pooled = t[0] if tower.cls is not None else t.mean(0)
    score = pooled @ pooled.detach() if text_z is None else F.normalize(model.image_projection(pooled), dim=-1) @ text_z
    score.backward()
    cams = [np.maximum((a * a.grad).detach().double().numpy(), 0) for a in kept]
    first, second, *last = ((a + b) / 2 for a, b in zip(cams[::2], cams[1::2], strict=True))
    rolled = (np.eye(len(first)) + second) @ (np.eye(len(first)) + first)
    pooled_rows = rolled[0, 1:] if tower.cls is not None else rolled.mean(0) - 1 / len(first)
    row = (last[0] @ rolled)[0] if last else pooled_rows
    return (row / row.sum()).reshape(side, side)


@pytest.mark.parametrize("pool", ["tok", "gap", "map"])
def test_relevance_equals_the_rule_worked_out_head_by_head(pool: str) -> None:
    model = small_model(pool)
    text_z = F.normalize(torch.randn(12, generator=torch.Generator().manual_seed(2)), dim=-1)
    for side in (2, 3):
        with torch.no_grad():
            plain = model.image_tower(images(1), side)
            with recorded_attention(model.image_tower) as weights:
                whole = model.image_tower.forward_tokens(images(1), side)
                torch.testing.assert_close(model.image_tower.pool_tokens(whole), plain, rtol=0, atol=1e-5)
        assert len(weights) == 2 + (pool == "map")
        assert all(torch.allclose(w.sum(-1), torch.ones(())) for w in weights)
        found = relevance(model, images(1), side, text_z)
        np.testing.assert_allclose(found.numpy(), slow_relevance(model, images(1), side, text_z), rtol=0, atol=2e-5)
        assert float(found.sum()) == pytest.approx(1, abs=1e-6)
        assert found.min() >= 0
        assert found.std() > 1e-3
    alone = relevance(model, images(1), 3, None)  # a tower without texts
    np.testing.assert_allclose(alone.numpy(), slow_relevance(model, images(1), 3, None), rtol=0, atol=2e-5)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_score_that_no_token_changes_gives_an_even_map() -> None:
    torch.testing.assert_close(relevance(small_model("map"), images(1), 3, torch.zeros(12)), torch.full((3, 3), 1 / 9))


def test_focus_and_agreement_of_maps_by_hand() -> None:
    assert half_mass(torch.full((4, 4), 1 / 16)) == 0.5
    assert half_mass(torch.tensor([[0.6, 0.2], [0.1, 0.1]])) == 0.25
    left = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert agreement(left, left.repeat_interleave(3, 0).repeat_interleave(3, 1)) == pytest.approx(1)
    assert agreement(left, 1 - left) == pytest.approx(-1)
    assert agreement(left, torch.ones(3, 3)) == 0
