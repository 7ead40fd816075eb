"""Suites: what is read, and that every mistake is said in one line with its mend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flexiclip_eval import DatasetConfig, TaskConfig, load_suite
from flexiclip_eval.data.images import Record
from flexiclip_eval.data.labels import resolve_labels
from flexiclip_eval.embeddings.prompts import fill
from flexiclip_eval.suites.load import SUITES, load_datasets

from flexiclip.errors import UserError


@pytest.mark.parametrize("name", sorted(path.stem for path in SUITES.glob("*.yaml")))
def test_installed_suites_load(name: str) -> None:
    suite = load_suite(name)
    assert [task.kind for dataset in suite.datasets for task in dataset.tasks]


def test_openmoji_reads_its_folder_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXICLIP_DATA", "/elsewhere")
    (dataset,) = load_suite("openmoji").datasets
    assert dataset.shards == "/elsewhere/openmoji/heldout-*.tar"
    assert {task.kind for task in dataset.tasks} == {"retrieval", "classification"}


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
        ({"label": "cls", "classes": ("cat", "dog", "cat")}, "'cat' stands twice"),
        ({}, "name the field"),
    ],
)
def test_mistakes_in_a_task(task: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TaskConfig("classification", **task)


def test_rows_must_stay_apart(tmp_path: Path) -> None:
    one = TaskConfig("classification", label="cls")
    with pytest.raises(UserError, match="need a name each"):
        DatasetConfig("a", "a.tar", (one, one))
    named = DatasetConfig("a", "a.tar", (one, TaskConfig("classification", name="fine", label="json:fine")))
    assert [named.row_name(task) for task in named.tasks] == ["a", "a-fine"]
    with pytest.raises(UserError, match="share a name"):
        load_datasets(["openmoji", "openmoji"])


def test_labels_by_name_and_by_number() -> None:
    by_number = TaskConfig("classification", label="cls", classes={"cat": "a cat", "dog": "a dog"})
    records = [Record("s/0", (), {"cls": 1}, 0), Record("s/1", (), {"cls": "cat"}, 1)]
    classes, words, labels = resolve_labels(by_number, records)
    assert (classes, words, labels.tolist()) == (["cat", "dog"], ["a cat", "a dog"], [1, 0])
    found = TaskConfig("classification", label="cls")
    classes, words, labels = resolve_labels(found, [Record("s/0", (), {"cls": "pear"}, 0), Record("s/1", (), {"cls": "fig"}, 1)])
    assert (classes, words, labels.tolist()) == (["fig", "pear"], ["fig", "pear"], [1, 0])


def test_labels_that_are_missing_or_unknown_name_the_sample() -> None:
    task = TaskConfig("classification", label="cls", classes=("cat", "dog"))
    with pytest.raises(UserError, match="s/7 has no cls"):
        resolve_labels(task, [Record("s/7", (), {"cls": None}, 7)])
    with pytest.raises(UserError, match="'cow' of s/8 is not among its 2 classes"):
        resolve_labels(task, [Record("s/8", (), {"cls": "cow"}, 8)])
    with pytest.raises(UserError, match="label 2 of s/9"):
        resolve_labels(task, [Record("s/9", (), {"cls": 2}, 9)])


def test_prompts_leave_other_braces_alone() -> None:
    assert fill(["a {c} {x}", "{c}, {c}"], "cat") == ["a cat {x}", "cat, cat"]
