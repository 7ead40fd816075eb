"""A classifier's head through the whole harness, against logits of each image alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from eval_tools import CATEGORIES, toys, write_shards, write_suite
from flexiclip_eval import EvalOptions, evaluate_suites, make_evaluators

from flexiclip.config import Config, from_dict
from flexiclip.errors import UserError
from flexiclip.model_folder import LoadedModel, build_model

CLASSES = ("ships", *reversed(CATEGORIES))  # one that the suite does not have, and another order


@pytest.fixture(scope="module")
def classifier() -> LoadedModel:
    image = {"width": 16, "depth": 1, "heads": 2, "image_size": 24, "base_patch_size": 8, "base_grid": 3, "projection_bias": True}
    data = {"model": {"image": image, "text": None, "classes": CLASSES}, "patch": {"seqhw": [2, 3, 6]}}
    loaded = build_model(from_dict(Config, data))
    torch.nn.init.normal_(loaded.model.image_projection.weight, generator=torch.Generator().manual_seed(0))
    loaded.model.eval()
    return loaded


def suite(folder: Path, **task: object) -> str:
    shards = write_shards(folder / "shards", toys(40), (40,))
    tasks = [{"kind": "classification", "label": "json:category", **task}]
    (folder / "suite.yaml").write_text(json.dumps({"datasets": [{"name": "toys", "shards": shards, "tasks": tasks}]}))
    return str(folder / "suite.yaml")


def test_the_head_is_scored_at_every_length(classifier: LoadedModel, tmp_path: Path) -> None:
    """Among the suite's classes alone: a class that no label can be is no answer."""
    rows = evaluate_suites([("classifier", classifier)], [suite(tmp_path)], options=EvalOptions(batch_size=7))
    assert [(row.task, row.seqhw) for row in rows] == [("classification", s) for s in (2, 3, 6)]
    present = sorted({toy.category for toy in toys(40)})
    for row in rows:
        hits = {1: 0, 5: 0}
        for toy in toys(40):
            with torch.no_grad():
                logits = classifier.model.encode_image(classifier.transform(toy.image)[None], seqhw=row.seqhw)[0]
            ranked = sorted(present, key=lambda name: -float(logits[CLASSES.index(name)]))
            for k in hits:
                hits[k] += toy.category in ranked[:k]
        assert row.metrics["acc1"] == pytest.approx(hits[1] / 40)
        assert row.metrics.get("acc5", hits[5] / 40) == pytest.approx(hits[5] / 40)
    assert make_evaluators([suite(tmp_path)])(classifier)["toys/classification/acc1/seqhw=3"] == rows[1].metrics["acc1"]


def test_what_a_head_cannot_answer(classifier: LoadedModel, tmp_path: Path) -> None:
    cars = suite(tmp_path, classes={**{name: name for name in CATEGORIES}, "cars": "a car"})
    with pytest.raises(UserError, match=r"its class 'cars' is none of the 7 that the model's head knows"):
        evaluate_suites([("classifier", classifier)], [cars])
    with pytest.raises(UserError, match=r"zero-shot tasks need its text half \(retrieval\)"):
        evaluate_suites([("classifier", classifier)], [write_suite(tmp_path / "both.yaml", f"{tmp_path}/shards/part-*.tar")])
