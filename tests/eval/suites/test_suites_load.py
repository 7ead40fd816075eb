"""Suites: what is read, and that every mistake is said in one line with its mend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flexiclip_eval import DatasetConfig, TaskConfig, load_suite
from flexiclip_eval.data.images import Record
from flexiclip_eval.data.labels import resolve_labels
from flexiclip_eval.suites.layout import at
from flexiclip_eval.suites.load import SUITES, load_datasets

from flexiclip.errors import UserError


@pytest.mark.parametrize("name", sorted(path.stem for path in SUITES.glob("*.yaml")))
def test_installed_suites_load(name: str) -> None:
    suite = load_suite(name)
    assert all(dataset.root or dataset.csv or dataset.tasks for dataset in suite.datasets)
    assert len({dataset.name for dataset in suite.datasets}) == len(suite.datasets)


def test_openmoji_reads_its_folder_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXICLIP_DATA", "/elsewhere")
    (dataset,) = load_suite("openmoji").datasets
    assert dataset.shards == "/elsewhere/openmoji/heldout-*.tar"
    assert {task.kind for task in dataset.tasks} == {"retrieval", "classification"}


PUBLISHED = """mscoco_captions flickr8k flickr30k imagenet1k imagenetv2 imagenet_sketch imagenet-a imagenet-r imagenet-o objectnet
    fer2013 voc2007 sun397 cars fgvc_aircraft mnist stl10 gtsrb country211 renderedsst2 vtab-caltech101 vtab-cifar10 vtab-cifar100
    vtab-clevr_count_all vtab-clevr_closest_object_distance vtab-diabetic_retinopathy vtab-dmlab vtab-dsprites_label_orientation
    vtab-dsprites_label_x_position vtab-dsprites_label_y_position vtab-dtd vtab-eurosat vtab-kitti_closest_vehicle_distance
    vtab-flowers vtab-pets vtab-pcam vtab-resisc45 vtab-smallnorb_label_azimuth vtab-smallnorb_label_elevation vtab-svhn"""
"""CLIP_benchmark's benchmark/webdatasets.txt, with `-` for the `/` of a name, as its addresses have it."""
COLLECTIONS = ("vtab", "vtab+", "retrieval", "imagenet_robustness")


def test_shipped_suites_are_the_collections_of_clip_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    from clip_benchmark.datasets.builder import dataset_collection

    monkeypatch.delenv("FLEXICLIP_WDS", raising=False)
    named: dict[str, set[str]] = {}
    for path in SUITES.glob("*.yaml"):
        roots = [dataset.root for dataset in load_suite(path.stem).datasets if dataset.root]
        assert all(root.startswith("https://huggingface.co/datasets/clip-benchmark/wds_") for root in roots)
        named[path.stem] = {root.rpartition("/wds_")[2] for root in roots}
    theirs = {name: {each.replace("/", "-") for each in dataset_collection[name]} for name in COLLECTIONS}
    theirs["vtab+"].remove("voc2007_multilabel")
    theirs["imagenet_robustness"].add("imagenet-o")
    assert {name: named[name] for name in COLLECTIONS} == theirs
    assert set.union(*named.values()) == set(PUBLISHED.split()) - {"vtab-dsprites_label_y_position"}


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


def test_a_typo_names_the_nearest_key(tmp_path: Path) -> None:
    file = tmp_path / "suite.yaml"
    file.write_text("datasets: [{name: a, shards: a.tar, tasks: [{kind: classification, lable: cls}]}]")
    with pytest.raises(UserError, match=r"lable.*did you mean 'label'"):
        load_suite(str(file))


def test_an_unknown_suite_lists_the_names() -> None:
    with pytest.raises(UserError, match=r"neither a file nor one of .*openmoji"):
        load_suite("imagenet-of-mine")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"label": "cls", "templates": ("a photo",)}, "has no {c}"),
        ({"label": "cls", "templates": ()}, "templates is empty"),
        ({"label": "cls", "classes": ()}, "list of classes is empty"),
        ({"label": "cls", "classes": ("cat", "dog", "cat")}, "'cat' is given twice"),
        ({}, "name the field"),
    ],
)
def test_mistakes_in_a_task(task: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TaskConfig("classification", **task)


def test_tasks_and_data_sets_need_names_that_keep_rows_apart(tmp_path: Path) -> None:
    one = TaskConfig("classification", label="cls")
    with pytest.raises(UserError, match="need a name each"):
        DatasetConfig("a", "a.tar", (one, one))
    named = DatasetConfig("a", "a.tar", (one, TaskConfig("classification", name="fine", label="json:fine")))
    assert [named.row_name(task) for task in named.tasks] == ["a", "a-fine"]
    with pytest.raises(UserError, match="need a name each"):  # the rows of both are called zeroshot_classification
        DatasetConfig("a", "a.tar", (one, TaskConfig("multilabel", label="npy")))
    with pytest.raises(UserError, match="share a name"):
        load_datasets(["openmoji", "openmoji"])


def test_prompts_leave_other_braces_alone() -> None:
    task = TaskConfig("classification", label="cls", classes=("cat",), templates=("a {c} {x}", "{c}, {c}"))
    assert task.class_prompts(task.words) == [["a cat {x}", "cat, cat"]]


def test_a_class_may_have_several_words_and_prompts_of_its_own() -> None:
    classes = {"cat": ["a cat", "a kitten"], "dog": "a dog"}
    task = TaskConfig("classification", label="cls", classes=classes, templates=("{c}", "one {c}"))
    assert task.class_prompts(task.words) == [["a cat", "one a cat", "a kitten", "one a kitten"], ["a dog", "one a dog"]]
    own = TaskConfig(
        "classification", label="cls", classes=classes, prompts={"cat": ["it purrs"], "dog": ["it barks", "it begs"]}
    )
    assert own.class_prompts(own.words) == [["it purrs"], ["it barks", "it begs"]]
    half = TaskConfig("classification", label="cls", classes=classes, prompts={"cat": ["it purrs"]})
    with pytest.raises(UserError, match="no entry for the class 'dog'"):
        half.class_prompts(half.words)


def test_class_names_may_repeat_where_the_suite_says_so() -> None:
    task = TaskConfig("classification", label="cls", classes=("missile", "cat", "missile"), repeats=("missile",))
    assert task.words == {"missile": ("missile",), "cat": ("cat",), "missile #2": ("missile",)}
    _, prompts, labels = resolve_labels(task, [Record("s/0", (), {"cls": 2}, 0), Record("s/1", (), {"cls": 0}, 1)])
    assert labels.tolist() == [2, 0]
    assert prompts[0] == prompts[2]
