"""The numbers of the analyses against their definitions, written down a second time, slowly."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flexiclip_eval.analysis.attention import agreement, half_mass
from flexiclip_eval.analysis.cka import alignment, gram, hsic, layer_names, visit_layers
from flexiclip_eval.analysis.cue_conflict import Answer, Conflict, bias_of, read_conflicts
from flexiclip_eval.analysis.ensembles import Ensemble, TaskEnsembles, _sentence, at_cost, mean_rows, subsets
from flexiclip_eval.analysis.relevance import recorded_attention, relevance
from flexiclip_eval.analysis.tokens import alike, cell, seed_map, unit_tokens
from kit.evaluation import small_model
from PIL import Image
from torch import Tensor

from flexiclip.errors import UserError
from flexiclip.models.clip import FlexiCLIP


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


def test_shape_bias_by_hand() -> None:
    """Of six answers three are the shape, one the texture, two neither: 3/4. Between the two alone five are the shape."""
    cues = [("cat", "car"), ("cat", "key"), ("cat", "car"), ("car", "cat"), ("car", "key"), ("key", "cat")]
    conflicts = [Conflict(str(i), shape, texture) for i, (shape, texture) in enumerate(cues)]
    named = ["cat", "cat", "car", "car", "cat", "car"]
    bias = bias_of([Answer(name, name != "car" or i > 2) for i, name in enumerate(named)], conflicts)
    assert (bias.images, bias.shape, bias.texture, bias.bias, bias.nearer) == (6, 3 / 6, 1 / 6, 3 / 4, 5 / 6)
    assert bias.by_shape == {"cat": 2 / 3, "car": 1.0, "key": None}
    assert bias_of([Answer("cup", False)] * 6, conflicts).bias is None


def test_the_cues_of_a_file_are_in_its_name(tmp_path: Path) -> None:
    def write(*names: str) -> Path:
        folder = tmp_path / names[0].replace("/", "_")
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(folder / name)
        return folder

    found = read_conflicts(write("cat/cat1-car2.png", "cat/cat3-cat1.png", "car/car10-traffic_light4.png"))
    assert [(c.shape, c.texture) for c in found] == [("car", "traffic_light"), ("cat", "car")]
    wrong: list[tuple[Any, str]] = [
        (("cat/dog1-car2.png",), "the name must be cat1-TEXTURE1.png"),
        (("cat/photo.png",), "the name must be cat1-TEXTURE1.png"),
        (("cat/cat1-cat2.png",), "nothing conflicts"),
    ]
    for names, message in wrong:
        with pytest.raises(UserError, match=message):
            read_conflicts(write(*names))
