"""Prefixes of embeddings: their scores worked out one by one, how they are named, and the front of length and width."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from eval_tools import encode_one_by_one, slow_recall, texts_one_by_one, toy_model, toys, unit, write_shards, write_suite
from flexiclip_eval import EvalOptions, Row, evaluate_suites
from flexiclip_eval.report.files import read_rows
from flexiclip_eval.tradeoffs import fronts, pareto_front

from flexiclip.errors import UserError
from flexiclip.model_folder import LoadedModel

RECALL = "image_retrieval_recall@5"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return toy_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def suite(tmp_path: Path) -> str:
    return write_suite(tmp_path / "toys.yaml", write_shards(tmp_path / "data", toys(23), (9, 1, 13)))


def test_scores_of_prefixes_sample_by_sample(loaded: LoadedModel, suite: str, tmp_path: Path) -> None:
    rows = evaluate_suites(
        [("runs/toy", loaded)], [suite], seqhw=[2, 6], output=tmp_path / "out", options=EvalOptions(batch_size=4, widths=[5, 2])
    )
    lengths_of = {task: [(row.width, row.seqhw) for row in rows if row.task == task] for task in {row.task for row in rows}}
    assert set(lengths_of) == {"zeroshot_retrieval", "zeroshot_classification"}
    assert all(found == list(itertools.product((2, 5, 12), (2, 6))) for found in lengths_of.values())

    captions = list(dict.fromkeys(text for toy in toys(23) for text in toy.captions))
    positive = np.array([[text in toy.captions for toy in toys(23)] for text in captions])
    classes = sorted({toy.category for toy in toys(23)})
    label = np.array([classes.index(toy.category) for toy in toys(23)])
    prompts = [texts_one_by_one(loaded, [f"a photo of {c}", c]) for c in classes]
    whole_texts = texts_one_by_one(loaded, captions)
    for row in rows:
        assert row.width is not None
        assert row.seqhw is not None
        image = unit(encode_one_by_one(loaded, toys(23), row.seqhw)[:, : row.width])
        if row.task == "zeroshot_retrieval":
            scores = unit(whole_texts[:, : row.width]) @ image.T
            assert row.metrics[RECALL] == pytest.approx(slow_recall(scores, positive, 5), abs=1e-6)
        else:
            heads = np.stack([unit(unit(each[:, : row.width]).mean(0, keepdims=True))[0] for each in prompts])
            assert row.metrics["acc1"] == pytest.approx(np.mean((image @ heads.T).argmax(1) == label), abs=1e-6)

    assert read_rows(tmp_path / "out") == rows
    about = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [model["width"] for model in about["models"]] == [2, 5, 12]
    assert {choice["width"] for choice in about["choices"]} == {2, 5, 12}
    assert [front["task"] for front in about["fronts"]] == ["zeroshot_retrieval", "zeroshot_classification"]
    assert "runs/toy [:5]" in (tmp_path / "out" / "report.html").read_text()
    assert len(list((tmp_path / "out").glob("*_front.png"))) == 2
    plain = evaluate_suites(
        [("runs/toy", loaded)], [suite], seqhw=[2, 6], output=tmp_path / "out", options=EvalOptions(batch_size=4)
    )
    assert [row.metrics for row in plain] == [row.metrics for row in rows if row.width == 12]
    assert {row.width for row in plain} == {None}
    assert not list((tmp_path / "out").glob("*_front.png")), "of the evaluation before"


@pytest.mark.parametrize("widths", [[0], [4, 13]])
def test_a_width_that_is_none_of_the_model(loaded: LoadedModel, suite: str, widths: list[int]) -> None:
    with pytest.raises(UserError, match=r"--widths .*: the embeddings of runs/toy have 12 columns"):
        evaluate_suites([("runs/toy", loaded)], [suite], options=EvalOptions(widths=widths))


def row(gflops: float | None, width: int | None, recall: float, model: str = "m") -> Row:
    return Row("emoji", model, "p", "zeroshot_retrieval", {RECALL: recall}, "en", 9, 3, 9, None, None, gflops, None, width)


def test_the_front_is_what_nothing_beats() -> None:
    rng = np.random.default_rng(0)
    rows = [row(float(rng.integers(1, 6)), int(rng.integers(1, 6)), rng.integers(0, 9) / 10, str(i)) for i in range(60)]
    (front,) = fronts([*rows, row(None, 4, 1.0), row(0.5, None, 1.0)])
    kept = {point.model for point in front.points}
    for one in rows:
        better = [
            o
            for o in rows
            if o.gflops <= one.gflops
            and o.width <= one.width
            and o.metrics[RECALL] >= one.metrics[RECALL]
            and (o.gflops, o.width, o.metrics[RECALL]) != (one.gflops, one.width, one.metrics[RECALL])
        ]
        assert (one.model in kept) == (not better), one
    assert 0 < len(kept) < 60
    assert fronts([row(1.0, None, 0.5)]) == []


def test_pareto_front_by_hand() -> None:
    """(quality, cheapness): equal points stay both, and the order of the points stays."""
    points = [(2.0, 2.0), (3.0, 1.0), (2.0, 1.0), (2.0, 2.0), (1.0, 3.0), (0.0, 3.0)]
    assert pareto_front(points, lambda point: point) == [(2.0, 2.0), (3.0, 1.0), (2.0, 2.0), (1.0, 3.0)]
    assert pareto_front([], lambda point: point) == []
