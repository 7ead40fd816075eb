"""A linear probe by hand, and through the whole harness against scikit-learn called directly on embeddings made one by one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from flexiclip_eval import EvalOptions, evaluate_suites
from flexiclip_eval.tasks.linear_probe import CS, held_out, probe
from kit.evaluation import CATEGORIES, encode_one_by_one, toy_model, toys, unit, write_shards
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score

from flexiclip.data.tokenizers import AbsentTokenizer
from flexiclip.errors import UserError
from flexiclip.model_folder import LoadedModel

TESTED, BROKEN = 61, (3, 50)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return toy_model(tmp_path_factory.mktemp("model"))


def _suite(folder: Path, *, train: str | None, label: str = "json:category") -> str:
    write_shards(folder / "test", toys(TESTED, BROKEN), (TESTED,))
    dataset = {"name": "toys", "shards": f"{folder}/test/part-*.tar", "tasks": [{"kind": "linear_probe", "label": label}]}
    (folder / "suite.yaml").write_text(json.dumps({"datasets": [dataset | ({"train": train} if train else {})]}))
    return str(folder / "suite.yaml")


def _expected(loaded: LoadedModel, seqhw: int) -> dict[str, float]:
    """scikit-learn on the same images; the test ones follow the training ones in no way, so C is all that is chosen."""
    training, tested = toys(90), [toy for toy in toys(TESTED, BROKEN) if not toy.broken]
    x, y = encode_one_by_one(loaded, training, seqhw), np.array([CATEGORIES.index(toy.category) for toy in training])
    held = held_out(y)
    assert held.sum() == 18
    shares = [LogisticRegression(C=c, max_iter=1000).fit(x[~held], y[~held]).score(x[held], y[held]) for c in CS]
    model = LogisticRegression(C=CS[int(np.argmax(shares))], max_iter=1000).fit(x, y)
    x, y = encode_one_by_one(loaded, tested, seqhw), np.array([CATEGORIES.index(toy.category) for toy in tested])
    found: dict[str, float] = {"lp_acc1": accuracy_score(y, model.predict(x))}
    found["lp_mean_per_class_recall"] = balanced_accuracy_score(y, model.predict(x))
    if len(model.classes_) >= 5:
        found["lp_acc5"] = top_k_accuracy_score(y, model.decision_function(x), k=5, labels=model.classes_)
    return found


def test_a_probe_equals_scikit_learn_called_directly(loaded: LoadedModel, tmp_path: Path) -> None:
    suite = _suite(tmp_path, train=write_shards(tmp_path / "training", toys(90), (40, 50)))
    rows = evaluate_suites(
        [("toy", loaded)], [suite], output=tmp_path / "out", options=EvalOptions(batch_size=7, embeddings=tmp_path / "kept")
    )
    assert [(row.task, row.seqhw, row.n) for row in rows] == [("linear_probe", s, TESTED - len(BROKEN)) for s in (2, 3, 6)]
    for row in rows:
        assert row.metrics == pytest.approx(_expected(loaded, row.seqhw or 0), abs=1e-12)
    assert len({row.metrics["lp_acc1"] for row in rows}) > 1, "each length has a probe of its own"
    assert len(list((tmp_path / "kept").glob("images-*"))) == 6
    assert evaluate_suites([("toy", loaded)], [suite], options=EvalOptions(embeddings=tmp_path / "kept")) == rows
    about = json.loads((tmp_path / "out" / "report.json").read_text())
    assert about["choices"][0]["metric"] == "lp_acc1"
    assert {bad["key"] for bad in about["bad_samples"]} == {f"{i:04d}" for i in BROKEN}


def test_an_image_tower_alone_is_probed(loaded: LoadedModel, tmp_path: Path) -> None:
    """Folders of classes: plain red and plain blue are learned, and a class that is met in the test alone is never right."""
    for split, colours in (("train", {"red": 6, "blue": 5}), ("test", {"red": 2, "blue": 2, "green": 1})):
        for name, count in colours.items():
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (24, 24), name).save(tmp_path / split / name / f"{i}.png")
    task = {"kind": "linear_probe", "label": "folder"}
    dataset = {"name": "c", "images": str(tmp_path / "test"), "train": str(tmp_path / "train"), "tasks": [task]}
    (tmp_path / "suite.yaml").write_text(json.dumps({"datasets": [dataset]}))
    alone = LoadedModel(loaded.model, loaded.transform, AbsentTokenizer(loaded.config.tokenizer, {}), loaded.config)
    row = evaluate_suites([("toy", alone)], [str(tmp_path / "suite.yaml")], seqhw=[3])[0]
    assert row.metrics == pytest.approx({"lp_acc1": 4 / 5, "lp_mean_per_class_recall": 2 / 3})


def test_what_is_held_out_is_a_fifth_and_never_all_of_a_class() -> None:
    label = np.random.default_rng(0).integers(0, 30, 100)
    held = held_out(label)
    assert held.sum() == 20
    assert set(label[~held]) == set(label)
    assert np.array_equal(held, held_out(label))
    assert held_out(np.repeat(np.arange(50), 2)).sum() == 20  # two images a class


def test_collapsed_features_name_the_largest_class() -> None:
    rows, label = np.ones((25, 4)) / 2, np.array([0] * 8 + [2] * 17)
    scores = probe(rows, label, rows[:3], 4, "c")
    assert scores.argmax(1).tolist() == [2] * 3
    assert np.isneginf(scores[:, [1, 3]]).all()


def test_mistakes_are_said_before_any_work(loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def error(suite: str) -> str:
        with pytest.raises(UserError) as caught:
            evaluate_suites([("toy", loaded)], [suite], seqhw=[3])
        return str(caught.value)

    assert "train must name the training split" in error(_suite(tmp_path, train=None))
    few = write_shards(tmp_path / "few", toys(4), (4,))
    assert "has 4 images, too few to hold a fifth of them out" in error(_suite(tmp_path, train=few))
    one = write_shards(tmp_path / "one", toys(1), (1,))
    assert "images of only one class" in error(_suite(tmp_path, train=one))
    assert "has no json:nothing" in error(_suite(tmp_path, train=few, label="json:nothing"))
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert "pip install 'flexiclip[probe]'" in error(_suite(tmp_path, train=few))


def test_a_probe_takes_the_smallest_of_the_best_strengths() -> None:
    """Two clouds that any C tells apart, so 0.1 is taken; its scores are scikit-learn's of the whole training split."""
    rng = np.random.default_rng(0)
    taught = np.arange(60) % 2
    training = unit(rng.normal(size=(60, 4)) * 0.05 + np.where(taught[:, None] == 0, [1, 0, 0, 0], [0, 1, 0, 0]))
    images = unit(rng.normal(size=(7, 4)))
    expected = LogisticRegression(C=0.1, max_iter=1000).fit(training, taught).decision_function(images)
    scores = probe(training, taught, images, 2, "d")
    assert np.allclose(scores[:, 1], expected, atol=1e-8)
    assert np.allclose(scores[:, 0], -expected, atol=1e-8)
