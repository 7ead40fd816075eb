"""Prefixes of embeddings: their scores worked out one by one, and how they are named."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from flexiclip_eval import EvalOptions, evaluate_suites
from flexiclip_eval.report.files import read_rows
from kit.evaluation import encode_one_by_one, slow_recall, texts_one_by_one, toy_model, toys, unit, write_shards, write_suite

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
