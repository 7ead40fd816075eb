"""Recalls and ranks of retrieval by hand, against slow sorts, and at chance; and a cascade against re-ranking by sorts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flexiclip_eval.data.images import Record
from flexiclip_eval.embeddings.embed import unit_rows
from flexiclip_eval.tasks import search
from flexiclip_eval.tasks.classification import classify
from flexiclip_eval.tasks.retrieval import (
    Pairs,
    median_error,
    merged_pairs,
    plain_pairs,
    rerank,
    retrieval_chance,
    retrieval_metrics,
)
from kit.evaluation import prepared, shuffled_recall, slow_recall, unit


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


def test_median_ranks_by_hand() -> None:
    """Captions 0 to 3 rank their image 1st, 2nd, 4th and 4th; images rank their caption 1st, 1st, 2nd and 4th."""
    scores = torch.tensor([[4.0, 3, 2, 1], [4, 3, 2, 1], [4, 3, 1, 2], [4, 3, 2, 1]])
    pairs = merged_pairs([["c0"], ["c1"], ["c2"], ["c3"]])
    metrics, ranks = retrieval_metrics(torch.eye(4), scores, pairs)
    assert ranks.tolist() == [1, 2, 4, 4]
    assert metrics["image_retrieval_median_rank"] == 3.0
    assert metrics["image_retrieval_recall@1"] == 0.25
    assert metrics["image_retrieval_recall@5"] == 1.0
    # columns: image 0 ties all captions (mean rank 2.5), 1 too, 2 has 2, 2, 1, 2 (its own last), 3 has 1, 1, 2, 1 (three tied)
    assert metrics["text_retrieval_median_rank"] == np.median([2.5, 2.5, 4, 3])
    assert metrics["text_retrieval_recall@1"] == pytest.approx((1 / 4 + 1 / 4 + 0 + 0) / 4)


def test_pairs_of_equal_captions() -> None:
    """Merged, a caption is found by any of its images; plain, each stands for its own."""
    captions = [["cat", "cat", "pet"], ["pet"]]
    merged, plain = merged_pairs(captions), plain_pairs(captions)
    assert (merged.captions, merged.image.tolist(), merged.caption.tolist()) == (["cat", "pet"], [0, 0, 1], [0, 1, 1])
    assert (plain.captions, plain.image.tolist(), plain.caption.tolist()) == (
        ["cat", "cat", "pet", "pet"],
        [0, 0, 0, 1],
        [0, 1, 2, 3],
    )
    image_z, text = torch.eye(2), {"cat": [1.0, 0], "pet": [0.0, 1]}
    rows = torch.tensor([text[name] for name in merged.captions]), torch.tensor([text[name] for name in plain.captions])
    assert retrieval_metrics(image_z, rows[0], merged)[0]["image_retrieval_recall@1"] == 1.0
    assert retrieval_metrics(image_z, rows[1], plain)[0]["image_retrieval_recall@1"] == 3 / 4


def test_a_cascade_equals_re_ranking_by_sorts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    pairs = merged_pairs([[f"c{rng.integers(0, 50)}" for _ in range(rng.integers(1, 4))] for _ in range(61)])
    long_z, text_z = _tensor(unit(rng.normal(size=(61, 6)))), _tensor(unit(rng.normal(size=(len(pairs.captions), 6))))
    short_z = torch.nn.functional.normalize(long_z + 0.5 * _tensor(unit(rng.normal(size=(61, 6)))), dim=1)
    monkeypatch.setattr(search, "CHUNK", 61 * 7)  # blocks of 7 captions
    found = rerank(text_z, short_z, long_z, pairs.by_caption)
    assert [each.shortlist for each in found] == [0, 5, 10, 20, 50, 61]
    positive = _positives(pairs)
    short, long = (text_z @ short_z.T).numpy(), (text_z @ long_z.T).numpy()
    for each in found:
        final, listed = short.copy(), np.argsort(-short, axis=1)[:, : each.shortlist]
        np.put_along_axis(final, listed, np.take_along_axis(long, listed, 1) + 10, 1)
        for k in (1, 5, 10):
            assert each.metrics[f"image_retrieval_recall@{k}"] == pytest.approx(slow_recall(final, positive, k), abs=1e-12)
        assert each.reranked == pytest.approx(len(np.unique(listed)) / 61)
    for each, alone_z in ((found[0], short_z), (found[-1], long_z)):  # the ends are the rows of the two lengths
        alone = retrieval_metrics(alone_z, text_z, pairs)[0]
        assert each.metrics == {name: alone[name] for name in each.metrics}
    tiny = merged_pairs([["a"], ["b"]])
    assert [each.shortlist for each in rerank(text_z[:2], short_z[:2], long_z[:2], tiny.by_caption)] == [0, 2]


def test_the_error_of_a_median_rank() -> None:
    """Of 400 values spread over 0..1, the median has a standard error of 1 / (2 sqrt(400)); the draws are the same every time."""
    values = np.random.default_rng(3).random(400)
    assert median_error(values) == pytest.approx(0.025, rel=0.2)
    assert median_error(values) == median_error(values)
    assert median_error(np.full(9, 3.0)) == 0


def test_errors_and_hits_of_a_retrieval() -> None:
    """The recalls have the errors of shares of their own queries: 8 captions, 4 images."""
    draw = torch.Generator().manual_seed(0)
    texts = {f"t{i}": torch.randn(5, generator=draw).tolist() for i in range(8)}
    records = [Record(str(i), (f"t{2 * i}", f"t{2 * i + 1}"), {}, i) for i in range(4)]
    image_z = unit_rows(torch.randn(4, 5, generator=draw))
    found = prepared("retrieval", records, texts).measure(image_z, image_z[:0])
    for name, value in found.metrics.items():
        if "recall" in name:
            n = 8 if name.startswith("image_") else 4
            assert found.errors[name] == pytest.approx((value * (1 - value) / n) ** 0.5)
    assert found.errors.keys() == found.metrics.keys()
    assert found.hits is not None
    assert found.hits.mean().item() == pytest.approx(found.metrics["image_retrieval_recall@5"])
