"""Recalls and accuracies against hand-computed cases and against slow sorts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flexiclip_eval.embeddings.embed import unit_rows
from flexiclip_eval.tasks import search
from flexiclip_eval.tasks.classification import classification_chance, classify, largest_class
from flexiclip_eval.tasks.retrieval import Pairs, merged_pairs, retrieval_chance, retrieval_metrics
from flexiclip_eval.tasks.search import hit_probability
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.evaluation import shuffled_recall, slow_recall, unit


def _tensor(rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(rows.astype(np.float32))


def _positives(pairs: Pairs) -> np.ndarray:
    """[captions, images], true where they belong together."""
    table = np.zeros((len(pairs.captions), pairs.images), dtype=bool)
    table[pairs.caption.numpy(), pairs.image.numpy()] = True
    return table


def test_captions_are_told_apart_by_text() -> None:
    pairs = merged_pairs([["cat", "pet"], ["dog", "pet", "dog"], ["cat"]])
    assert pairs.captions == ["cat", "pet", "dog"]
    assert list(zip(pairs.image.tolist(), pairs.caption.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 2), (1, 1), (2, 0)]


def test_recall_by_hand() -> None:
    image_z = torch.eye(3)  # three images on the axes
    pairs = merged_pairs([["near 2"], ["near 0 then 1"], ["near 2"]])
    text_z = unit_rows(torch.tensor([[0.1, 0.2, 0.9], [0.9, 0.5, 0.1]]))
    metrics = retrieval_metrics(image_z, text_z, pairs)[0]
    assert metrics["image_retrieval_recall@1"] == 0.5  # "near 2" finds image 2, one of its two; the other caption finds image 0
    assert metrics["image_retrieval_recall@5"] == 1.0
    assert metrics["text_retrieval_recall@1"] == pytest.approx(2 / 3)  # image 0 prefers the caption that is not its own
    assert metrics["text_retrieval_recall@5"] == 1.0


@pytest.mark.parametrize("chunk", [1, 97, 1 << 24])
def test_recall_equals_a_full_sort(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "CHUNK", chunk)
    rng = np.random.default_rng(1)
    texts = [[f"caption {rng.integers(0, 60)}" for _ in range(rng.integers(1, 5))] for _ in range(53)]
    pairs = merged_pairs(texts)
    image_z = unit(rng.normal(size=(53, 6)))
    text_z = unit(rng.normal(size=(len(pairs.captions), 6)))
    got = retrieval_metrics(_tensor(image_z), _tensor(text_z), pairs)[0]
    positive = _positives(pairs)
    for k in (1, 5, 10):
        assert got[f"image_retrieval_recall@{k}"] == pytest.approx(slow_recall(text_z @ image_z.T, positive, k), abs=1e-12)
        assert got[f"text_retrieval_recall@{k}"] == pytest.approx(slow_recall(image_z @ text_z.T, positive.T, k), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_ties_are_worth_the_average_over_every_order(data: st.DataObject) -> None:
    items, k = 5, data.draw(st.integers(1, 6))
    scores = np.array(data.draw(st.lists(st.integers(0, 2), min_size=items, max_size=items)), dtype=float)[None]
    positive = np.array(data.draw(st.lists(st.booleans(), min_size=items, max_size=items).filter(any)))[None]
    best = scores[positive].max()
    above, tied = torch.tensor([int((scores > best).sum())]), torch.tensor([int((scores == best).sum())])
    mine = torch.tensor([int(((scores == best) & positive).sum())])
    assert hit_probability(above, tied, mine, k).item() == pytest.approx(shuffled_recall(scores, positive, k), abs=1e-12)


def test_a_collapsed_model_scores_chance_and_nothing_else() -> None:
    images, pairs = 40, merged_pairs([[f"caption {i}"] for i in range(40)])
    point = torch.ones(images, 3) / 3**0.5
    metrics = retrieval_metrics(point, point, pairs)[0]
    for k in (1, 5, 10):
        assert metrics[f"image_retrieval_recall@{k}"] == pytest.approx(k / images)
        assert metrics[f"text_retrieval_recall@{k}"] == pytest.approx(k / images)
    assert metrics == pytest.approx(retrieval_chance(pairs))
    scores = classify(point[:30], point[:8], torch.zeros(30, dtype=torch.int64), list("abcdefgh")).metrics
    assert scores == pytest.approx({"acc1": 1 / 8, "acc5": 5 / 8, "mean_per_class_recall": 1 / 8})


def test_a_diverged_model_scores_chance() -> None:
    pairs = merged_pairs([[f"caption {i}"] for i in range(20)])
    broken = unit_rows(torch.full((20, 4), torch.nan))
    assert torch.equal(broken, torch.zeros(20, 4))
    assert retrieval_metrics(broken, unit_rows(torch.randn(20, 4)), pairs)[0] == pytest.approx(retrieval_chance(pairs))


def test_chance_is_what_random_orders_give() -> None:
    pairs = merged_pairs([["a", "b"], ["a"], ["c"], ["d"], ["a"]])
    positive, chance = _positives(pairs), retrieval_chance(pairs)
    for k in (1, 5, 10):
        assert chance[f"image_retrieval_recall@{k}"] == pytest.approx(shuffled_recall(np.zeros((4, 5)), positive, k))
        assert chance[f"text_retrieval_recall@{k}"] == pytest.approx(shuffled_recall(np.zeros((5, 4)), positive.T, k))
    assert chance["image_retrieval_recall@1"] == pytest.approx((3 / 5 + 3 * 1 / 5) / 4)


def test_accuracy_by_hand() -> None:
    class_z = torch.eye(6)
    wanted = [0, 0, 0, 1, 5]
    nearest = torch.tensor([[6.0, 5, 4, 3, 2, 1], [5, 6, 4, 3, 2, 1], [1, 6, 5, 4, 3, 2], [1, 6, 2, 3, 4, 5], [1, 2, 3, 4, 6, 5]])
    got = classify(unit_rows(nearest), class_z, torch.tensor(wanted), list("abcdef")).metrics
    assert got["acc1"] == pytest.approx(2 / 5)  # images 0 and 3
    assert got["acc5"] == pytest.approx(4 / 5)  # image 2 has its class last of six
    assert got["mean_per_class_recall"] == pytest.approx((1 / 3 + 1 + 0) / 3)  # classes 2, 3 and 4 own no image
    assert largest_class(torch.tensor(wanted)) == pytest.approx(3 / 5)


def test_accuracy_equals_a_full_sort() -> None:
    rng = np.random.default_rng(2)
    image_z, class_z, label = unit(rng.normal(size=(101, 7))), unit(rng.normal(size=(9, 7))), rng.integers(0, 9, 101)
    got = classify(_tensor(image_z), _tensor(class_z), torch.from_numpy(label), list("abcdefghi")).metrics
    order = np.argsort(-(image_z @ class_z.T), axis=1)
    right = order[:, 0] == label
    assert got["acc1"] == pytest.approx(right.mean())
    assert got["acc5"] == pytest.approx((order[:, :5] == label[:, None]).any(axis=1).mean())
    assert got["mean_per_class_recall"] == pytest.approx(np.mean([right[label == c].mean() for c in np.unique(label)]))


def test_five_of_fewer_than_five_classes_is_no_metric() -> None:
    got = classify(torch.eye(4), torch.eye(4), torch.arange(4), list("abcd")).metrics
    assert got == {"acc1": 1.0, "mean_per_class_recall": 1.0}
    assert classification_chance(4).keys() == got.keys()
