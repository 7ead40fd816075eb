"""Classification by hand, against slow sorts, scikit-learn and CLIP_benchmark, and by a head through the whole harness."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_benchmark.metrics.zeroshot_classification import average_precision_per_class
from flexiclip_eval import DatasetConfig, EvalOptions, TaskConfig, evaluate_suites, make_evaluators
from flexiclip_eval.data.images import Record
from flexiclip_eval.embeddings.embed import unit_rows
from flexiclip_eval.tasks.base import Context
from flexiclip_eval.tasks.classification import (
    accuracies,
    average_precision,
    class_hits,
    classification_chance,
    classify,
    head_rows,
    largest_class,
    mean_recall_error,
)
from kit.evaluation import CATEGORIES, prepared, toys, unit, write_shards, write_suite
from sklearn.metrics import average_precision_score, balanced_accuracy_score

from flexiclip.config import Config, from_dict
from flexiclip.errors import UserError
from flexiclip.model_folder import LoadedModel, build_model

NO_IMAGES = torch.empty(0, 4)


def clip_benchmark(scores: torch.Tensor, label: torch.Tensor) -> dict[str, float]:
    """What its zeroshot_classification.evaluate makes of logits: topk of the largest k, and the recalls of argmax."""
    classes = scores.shape[1]
    order = scores.topk(5 if classes >= 5 else 1, 1, True, True).indices
    found = {"acc1": (order[:, 0] == label).double().mean().item()}
    found |= {"acc5": (order == label[:, None]).any(1).double().mean().item()} if classes >= 5 else {}
    return found | {"mean_per_class_recall": balanced_accuracy_score(label, scores.argmax(1))}


@pytest.mark.parametrize("classes", [3, 5, 9, 40])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_classify_breaks_ties_as_clip_benchmark_does(classes: int, levels: int) -> None:
    """Scores of one, two or three values: nearly every label is tied with other classes, with one alone too."""
    rng = np.random.default_rng(classes * 10 + levels)
    class_z = torch.eye(classes)
    image_z = torch.from_numpy(rng.integers(0, levels, (200, classes)).astype(np.float32))
    label = torch.from_numpy(rng.integers(0, classes, 200))
    expected = clip_benchmark((100.0 * image_z) @ class_z.T, label)
    names = list(map(str, range(classes)))
    assert classify(image_z, class_z, label, names, "topk").metrics == pytest.approx(expected, abs=1e-12)
    chance = classify(image_z, class_z, label, names).metrics
    best = image_z.max(1).values
    mine = image_z[torch.arange(200), label]
    tied = (image_z == best[:, None]).sum(1)
    worth = torch.where(mine == best, 1 / tied.double(), torch.zeros(200, dtype=torch.float64))
    assert chance["acc1"] == pytest.approx(worth.mean().item())
    per_class = [worth[label == c].mean().item() for c in label.unique()]
    assert chance["mean_per_class_recall"] == pytest.approx(np.mean(per_class))


def test_class_hits_of_two_tied_classes() -> None:
    """The label shares the first place with one other class: worth a half, or what torch.topk says."""
    scores = torch.tensor([[0.0, 7, 7, 1, 2, 3], [0.0, 7, 7, 1, 2, 3], [9.0, 7, 7, 8, 8, 8], [9.0, 7, 7, 8, 8, 8]])
    label = torch.tensor([1, 2, 1, 2])
    assert class_hits(scores, label, "chance")[:, :2].tolist() == [[0.5, 1], [0.5, 1], [0, 0.5], [0, 0.5]]
    found = class_hits(scores, label, "topk")
    for row, (hits, number) in enumerate(zip(found.tolist(), label.tolist(), strict=True)):
        five = scores[row].topk(5).indices.tolist()
        assert hits[:2] == [float(five[0] == number), float(number in five)]
    assert found[:2, 0].sum() == 1
    assert found[2:, 1].sum() == 1


def test_accuracies_by_hand() -> None:
    """Class 0 has three images and finds two, class 2 finds its only one; class 1 has none and is in no mean."""
    hits = torch.tensor([[1.0, 1, 1], [1, 1, 1], [0, 1, 0], [1, 1, 1]], dtype=torch.float64)
    found = accuracies(hits, torch.tensor([0, 0, 0, 2]), ["a", "b", "c"], "lp_")
    assert found.metrics == pytest.approx({"lp_acc1": 3 / 4, "lp_mean_per_class_recall": (2 / 3 + 1) / 2})
    assert found.details == {"per_class": {"a": pytest.approx(2 / 3), "c": 1.0}}
    assert largest_class(torch.tensor([0, 0, 0, 2])) == 0.75


RECORDS = [Record(str(i), (), {"json:c": labels}, i) for i, labels in enumerate([("x",), ("x", "y"), ("y",), (), ("x",)])]
CORNERS = {"x": [1.0, 0, 0, 0], "y": [0, 1.0, 0, 0], "z": [0, 0, 1.0, 0], "w": [0, 0, 0, 1.0]}


def test_mean_average_precision_by_hand() -> None:
    """x ranks its images 1st, 3rd and 4th, y 1st and 3rd, w its only one 4th, and z has none, which counts as 0."""
    records = [*RECORDS[:3], replace(RECORDS[3], labels={"json:c": ("w",)}), RECORDS[4]]
    task = prepared("multilabel", records, CORNERS, label="json:c", classes=("x", "y", "z", "w"), templates=("{c}",))
    scores = torch.tensor([[0.9, 0.1, 0, 0.4], [0.5, 0.9, 0, 0.3], [0.8, 0.2, 0, 0.2], [0.0, 0.3, 0, 0.1], [0.4, 0.0, 0, 0.0]])
    found = task.measure(scores, NO_IMAGES)
    x, y, w = (1 + 2 / 3 + 3 / 4) / 3, (1 + 2 / 3) / 2, 1 / 4
    assert found.details["per_class"] == pytest.approx({"x": x, "y": y, "z": 0.0, "w": w}, abs=1e-6)
    assert found.metrics == pytest.approx({"mean_average_precision": (x + y + w) / 4}, abs=1e-6)
    assert task.info.chance == pytest.approx({"mean_average_precision": (3 / 5 + 2 / 5 + 1 / 5) / 4})


def test_head_rows_pick_logits_by_name() -> None:
    task = TaskConfig("classification", label="cls", classes=("b", "a"))
    context = Context(DatasetConfig("d", "a.tar", (task,)), task, (), 0, lambda _: NO_IMAGES, head=("a", "c", "b"))
    assert head_rows(context, ["b", "a"]).tolist() == [[0, 0, 1], [1, 0, 0]]
    with pytest.raises(UserError, match="its class 'd' is not among the 3"):
        head_rows(context, ["d"])


def _tensor(rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(rows.astype(np.float32))


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


def test_average_precision_equals_scikit_learn_and_clip_benchmark() -> None:
    rng = np.random.default_rng(0)
    scores, member = torch.from_numpy(rng.normal(size=(101, 7)).astype(np.float32)), torch.from_numpy(rng.random((101, 7)) < 0.2)
    got = average_precision(scores, member)
    assert got.numpy() == pytest.approx(average_precision_score(member.numpy(), scores.numpy(), average=None), abs=1e-12)
    assert got.numpy() == pytest.approx(average_precision_per_class(scores, member).numpy(), abs=1e-6)  # theirs sums in float32
    coarse = scores.round()  # many ties
    expected = average_precision_score(member.numpy(), coarse.numpy(), average=None)
    assert average_precision(coarse, member).numpy() == pytest.approx(expected, abs=1e-12)
    knows_nothing = average_precision(torch.zeros(101, 7), member)
    assert knows_nothing.numpy() == pytest.approx(member.double().mean(0).numpy(), abs=1e-12)
    assert average_precision(scores[:, :1], torch.zeros(101, 1, dtype=torch.bool)).item() == 0.0  # as CLIP_benchmark counts it


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
    with pytest.raises(UserError, match=r"its class 'cars' is not among the 7 that the model's head knows"):
        evaluate_suites([("classifier", classifier)], [cars])
    with pytest.raises(UserError, match=r"zero-shot tasks need its text half \(retrieval\)"):
        evaluate_suites([("classifier", classifier)], [write_suite(tmp_path / "both.yaml", f"{tmp_path}/shards/part-*.tar")])


def test_the_error_of_the_mean_recall_is_that_of_a_bootstrap_inside_of_the_classes() -> None:
    draw = np.random.default_rng(0)
    recall, count = np.array([0.9, 0.5, 0.25]), np.array([40, 10, 100])
    means = (draw.binomial(count, recall, (40_000, 3)) / count).mean(1)
    assert mean_recall_error(recall, count) == pytest.approx(means.std(), rel=0.02)
    assert mean_recall_error(np.ones(3), count) == 0


def test_errors_and_hits_of_a_classification() -> None:
    hits = torch.tensor([[1.0, 1, 1], [0, 1, 0], [1, 1, 1], [1, 1, 1]], dtype=torch.float64)
    found = accuracies(hits, torch.tensor([0, 0, 0, 2]), ["a", "b", "c"], "lp_")
    assert found.errors == {
        "lp_acc1": pytest.approx((0.75 * 0.25 / 4) ** 0.5),
        "lp_mean_per_class_recall": pytest.approx((2 / 3 * 1 / 3 / 3) ** 0.5 / 2),  # class c has no doubt
    }
    assert found.hits is not None
    assert found.hits.tolist() == [1, 0, 1, 1]
