"""CLIP_benchmark's layout: the addresses of its files, and class names that are empty or stand twice."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import webdataset
from flexiclip_eval import evaluate_suites
from flexiclip_eval.suites.layout import at
from flexiclip_eval.suites.load import load_datasets
from kit.evaluation import encode_one_by_one, texts_one_by_one, toy_model, toys, unit
from kit.roots import write_root

from flexiclip.errors import UserError
from flexiclip.model_folder import LoadedModel

DISTANCES = ("very nearby", "nearby", "near", "", "distant", "very distant")
"""CLIP_benchmark's names of clevr_closest_object_distance."""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return toy_model(tmp_path_factory.mktemp("model"))


def distances(root: Path) -> Path:
    """Twelve images of the six distances."""
    (root / "test").mkdir(parents=True)
    with webdataset.TarWriter(str(root / "test" / "0.tar"), encoder=False, mtime=0) as writer:
        for number, toy in enumerate(toys(12)):
            data = io.BytesIO()
            toy.image.save(data, "PNG")
            writer.write({"__key__": f"s{number:02d}", "png": data.getvalue(), "cls": str(number % 6).encode()})
    (root / "test" / "nshards.txt").write_text("1")
    (root / "classnames.txt").write_text("\n".join(DISTANCES) + "\n")
    (root / "zeroshot_classification_templates.txt").write_text("{c} shapes.\nthe nearest shape is {c}.\n")
    return root


def test_an_empty_class_name_is_scored_as_clip_benchmark_scores_it(
    loaded: LoadedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from clip_benchmark.datasets.builder import build_wds_dataset
    from clip_benchmark.metrics.zeroshot_classification import zero_shot_classifier

    root = distances(tmp_path / "wds_distance")
    (row,) = evaluate_suites([("toy", loaded)], [str(root)], seqhw=[3])
    assert "class 3 has an empty name" in caplog.text
    theirs = build_wds_dataset("distance", loaded.transform, split="test", data_dir=str(root))
    assert tuple(theirs.classes) == DISTANCES == load_datasets([str(root)])[0].tasks[0].classes
    class_z = zero_shot_classifier(loaded.model, loaded.tokenizer, theirs.classes, theirs.templates, "cpu", amp=False).T.numpy()
    ours = [texts_one_by_one(loaded, [f"{name} shapes.", f"the nearest shape is {name}."]).mean(0) for name in DISTANCES]
    assert np.allclose(unit(np.stack(ours)), unit(class_z), atol=1e-6)
    right = (encode_one_by_one(loaded, toys(12), 3) @ unit(class_z).T).argmax(1) == np.arange(12) % 6
    assert row.metrics["acc1"] == pytest.approx(right.mean())
    assert row.n == 12


def test_empty_lines_of_classnames_are_counted_as_clip_benchmark_counts_them(tmp_path: Path) -> None:
    from clip_benchmark.datasets.builder import build_wds_dataset

    root = distances(tmp_path / "wds_distance")
    for text in ("a\nb\n", "a\nb", "a\r\n b \r\n\r\n", "\na\nb", "a\n\nb\n"):
        (root / "classnames.txt").write_text(text)
        theirs = build_wds_dataset("distance", None, split="test", data_dir=str(root)).classes
        assert load_datasets([str(root)])[0].tasks[0].classes == tuple(theirs)


def test_names_that_a_root_has_twice_name_the_suite_that_says_so(tmp_path: Path, loaded: LoadedModel) -> None:
    root = write_root(tmp_path / "wds_toys", "classification", shards=(6,))
    (root / "classnames.txt").write_text("crane\nflags\ncrane\n")
    with pytest.raises(UserError, match=r"'crane' is given twice in classnames\.txt") as caught:
        evaluate_suites([("toy", loaded)], [str(root)], seqhw=[3])
    suite = tmp_path / "suite.yaml"
    suite.write_text(str(caught.value).partition("give --suite a file with ")[2])
    (row,) = evaluate_suites([("toy", loaded)], [str(suite)], seqhw=[3])
    (task,) = load_datasets([str(suite)])[0].tasks
    assert (row.dataset, row.n, task.ties) == ("toys", 6, "topk")
    assert task.words == {"crane": ("crane",), "flags": ("flags",), "crane #2": ("crane",)}


@pytest.mark.parametrize(
    ("root", "files"),
    [
        ("https://huggingface.co/datasets/me/cats", "https://huggingface.co/datasets/me/cats/resolve/main/a"),
        ("https://huggingface.co/datasets/me/cats/tree/v1/sub", "https://huggingface.co/datasets/me/cats/resolve/v1/sub/a"),
        ("https://huggingface.co/datasets/me/cats/resolve/main/", "https://huggingface.co/datasets/me/cats/resolve/main/a"),
        ("https://huggingface.co/datasets/me", "https://huggingface.co/datasets/me/a"),
        ("https://example.org/datasets/me/cats", "https://example.org/datasets/me/cats/a"),
        ("/", "//a"),
        ("data/cats/", "data/cats/a"),
    ],
)
def test_the_address_of_a_file(root: str, files: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert at(root, "a") == files
