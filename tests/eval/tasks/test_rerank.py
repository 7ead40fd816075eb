"""A cascade against re-ranking by sorts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flexiclip_eval.tasks import rerank as rerank_module
from flexiclip_eval.tasks import search
from flexiclip_eval.tasks.rerank import rerank
from flexiclip_eval.tasks.retrieval import merged_pairs, retrieval_metrics
from kit.evaluation import slow_recall, unit


def _unit(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(unit(rng.normal(size=shape)).astype(np.float32))


def test_a_cascade_equals_re_ranking_by_sorts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    pairs = merged_pairs([[f"c{rng.integers(0, 50)}" for _ in range(rng.integers(1, 4))] for _ in range(61)])
    long_z, text_z = _unit(rng, 61, 6), _unit(rng, len(pairs.captions), 6)
    short_z = torch.nn.functional.normalize(long_z + 0.5 * _unit(rng, 61, 6), dim=1)
    monkeypatch.setattr(search, "CHUNK", 61 * 7)  # blocks of 7 captions
    found = rerank_module.rerank(text_z, short_z, long_z, pairs.by_caption)
    assert [each.shortlist for each in found] == [0, 5, 10, 20, 50, 61]
    positive = np.zeros((len(pairs.captions), 61), dtype=bool)
    positive[pairs.caption.numpy(), pairs.image.numpy()] = True
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
