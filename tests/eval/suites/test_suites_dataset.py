"""Data sets of a suite: where their samples are, their names, and their training splits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flexiclip_eval import DatasetConfig, TaskConfig
from flexiclip_eval.data.images import open_source
from flexiclip_eval.suites.dataset import default_name, training
from flexiclip_eval.suites.load import complete
from kit.roots import write_root

from flexiclip.errors import UserError

CLASSIFY = TaskConfig("classification", label="cls")
RETRIEVE = TaskConfig("retrieval")


def test_tasks_and_data_sets_need_names_that_keep_rows_apart() -> None:
    one = TaskConfig("classification", label="cls")
    with pytest.raises(UserError, match="need a name each"):
        DatasetConfig("a", "a.tar", (one, one))
    named = DatasetConfig("a", "a.tar", (one, TaskConfig("classification", name="fine", label="json:fine")))
    assert [named.row_name(task) for task in named.tasks] == ["a", "a-fine"]
    with pytest.raises(UserError, match="need a name each"):  # the rows of both are called zeroshot_classification
        DatasetConfig("a", "a.tar", (one, TaskConfig("multilabel", label="npy")))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"name": "a"}, "^data set a: give one of shards, root, images and csv, not none$"),
        ({}, "^a data set without a name: give one of shards, root, images and csv, not none$"),
        ({"root": "r", "csv": "a.csv"}, "^data set r: give one of shards, root, images and csv, not root and csv$"),
        ({"name": "a", "shards": "a.tar"}, "^data set a: tasks is empty; write kind: retrieval or kind: classification$"),
        ({"images": "pets", "split": "val"}, "^data set pets: split is for root; remove it$"),
        ({"root": "r", "tasks": (RETRIEVE,), "captions": ()}, "^data set r: its tasks need captions, for example captions: txt$"),
    ],
)
def test_dataset_config_refuses_keys_that_contradict_each_other(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        DatasetConfig(**keys)


def test_dataset_config_has_captions_if_a_task_reads_them() -> None:
    assert not DatasetConfig("a", "a.tar", (CLASSIFY,), captions=()).has_captions
    assert DatasetConfig("a", "a.tar", (CLASSIFY, RETRIEVE)).has_captions


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("data/wds_cars/", "cars"),
        ("https://huggingface.co/datasets/clip-benchmark/wds_vtab-pets", "vtab-pets"),
        ("https://huggingface.co/datasets/me/cats/resolve/main", "cats"),
        ("https://huggingface.co/datasets/me/wds_cats/tree/v1/", "cats"),
        ("tables/flickr.csv", "flickr"),
        ("tables/flickr.tsv", "flickr"),
        ("resolve/main", "main"),
        ("/", "/"),
    ],
)
def test_default_name_is_the_last_part_of_the_place(place: str, name: str) -> None:
    assert default_name(place) == name
    assert DatasetConfig(root=place).name == name
    assert DatasetConfig("own", root=place).name == "own"


def test_train_is_another_split_of_the_same_kind(tmp_path: Path) -> None:
    root = write_root(tmp_path / "r", "classification")
    write_root(root, "classification", split="train", shards=(4,))
    assert len(open_source(training(complete(DatasetConfig(root=str(root)))))) == 4
    shards = DatasetConfig(
        "s", str(root / "test" / "*.tar"), (TaskConfig("classification", label="cls"),), train=str(root / "train/0.tar")
    )
    assert (len(open_source(shards)), len(open_source(training(shards)))) == (13, 4)
    with pytest.raises(UserError, match="train must name"):
        training(DatasetConfig("s", "a.tar", shards.tasks))


def test_training_of_each_kind_of_place_keeps_the_tasks() -> None:
    probe = TaskConfig("linear_probe", label="cls")
    for config, expected in (
        (DatasetConfig(root="r", tasks=(probe,)), {"root": "r", "split": "train"}),
        (DatasetConfig(root="r", tasks=(probe,), split="val", train="part"), {"root": "r", "split": "part"}),
        (DatasetConfig("s", ("a.tar", "b.tar"), (probe,), train=("c.tar", "d.tar")), {"shards": ("c.tar", "d.tar")}),
        (DatasetConfig(images="pets/test", tasks=(probe,), train="pets/train"), {"images": "pets/train"}),
        (DatasetConfig(csv="test.csv", tasks=(probe,), train="train.csv"), {"csv": "train.csv"}),
    ):
        assert training(config) == replace(config, **expected, train=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"root": "r"}, "^data set r: train names one split of r, not a list$"),
        ({"images": "r"}, "^data set r: train names one folder or csv, not a list$"),
        ({"csv": "r.csv"}, "^data set r: train names one folder or csv, not a list$"),
    ],
)
def test_training_of_one_place_is_not_a_list(keys: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        training(DatasetConfig(**keys, train=("a", "b")))  # type: ignore[arg-type]
