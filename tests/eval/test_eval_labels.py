"""Labels in JSON and members: those that training takes are the same classes here."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flexiclip_eval import TaskConfig
from flexiclip_eval.data.images import Record
from flexiclip_eval.data.labels import resolve_labels, resolve_many
from flexiclip_eval.data.shards import json_label, member_label

from flexiclip.data.samples import BadSample, Labels
from flexiclip.errors import UserError

CLASSES = ("cat", "dog", "True", "2020", "1.5")


def trained(value: Any, classes: tuple[str, ...] = CLASSES) -> tuple[int, ...] | None:
    """What training makes of a JSON label; None: a bad sample."""
    try:
        return Labels("json:label", classes).read("s", "0", {"json": json.dumps({"label": value}).encode()})
    except BadSample:
        return None


def scored(value: Any, classes: tuple[str, ...] = CLASSES) -> tuple[int, ...] | None:
    """What evaluation makes of it; None: refused."""
    task = TaskConfig("classification", label="json:label", classes=classes)
    try:
        return tuple(resolve_labels(task, [Record("s/0", (), {"json:label": json_label(value)}, 0)])[2].tolist())
    except UserError:
        return None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("cat", (0,)),
        (1, (1,)),
        ("0", (0,)),
        ("1", (1,)),
        (["cat"], (0,)),
        (["1"], (1,)),
        ([1], (1,)),
        (["cat", "cat", 0, "0"], (0,)),
        (True, (2,)),
        ([True], (2,)),
        (2020, (3,)),
        ("2020", (3,)),
        (1.5, (4,)),
        (False, None),
        ("5", None),
        (5, None),
        ("-1", None),
        (-1, None),
        ("cow", None),
        ([], None),
        (None, None),
        ({"name": "cat"}, None),
    ],
)
def test_json_labels_are_those_of_training(value: Any, expected: tuple[int, ...] | None) -> None:
    assert trained(value) == expected
    assert scored(value) == expected


def test_several_classes_are_multilabel() -> None:
    record = Record("s/0", (), {"json:label": json_label(["cat", "1"])}, 0)
    with pytest.raises(UserError, match="s/0 has several classes; kind: multilabel scores such a data set"):
        resolve_labels(TaskConfig("classification", label="json:label", classes=CLASSES), [record])
    _, _, member = resolve_many(TaskConfig("multilabel", label="json:label", classes=CLASSES), [record])
    assert member.tolist() == [[True, True, False, False, False]]
    assert trained(["cat", "1"]) == (0, 1)


def test_a_number_in_letters_is_a_name_first() -> None:
    """MNIST's classes are digits; a mapping of labels says itself what they mean."""
    names = ("3", "2", "1", "0")
    assert scored("3", names) == trained("3", names) == (0,)
    stars = TaskConfig("classification", label="cls", classes={"1": "bad", "5": "good"})
    assert resolve_labels(stars, [Record("s/0", (), {"cls": "5"}, 0)])[2].tolist() == [1]
    with pytest.raises(UserError, match="the label '0' of s/0 is not among its 2 classes"):
        resolve_labels(stars, [Record("s/0", (), {"cls": "0"}, 0)])


def test_labels_that_are_found_are_sorted_names() -> None:
    task = TaskConfig("classification", label="json:label")
    values = [["b"], "a", True, 7, "7"]
    records = [Record(f"s/{i}", (), {"json:label": json_label(value)}, i) for i, value in enumerate(values)]
    classes, prompts, labels = resolve_labels(task, records)
    assert classes == ["7", "True", "a", "b"]
    assert labels.tolist() == [3, 2, 1, 0, 0]
    assert prompts[3] == ["a photo of a b."]
    with pytest.raises(UserError, match="json:label names no class, or nothing as a class"):
        resolve_labels(task, [Record("s/0", (), {"json:label": json_label("")}, 0)])


def test_members_hold_numbers_and_names() -> None:
    found = [member_label("cls", raw) for raw in (b"3", b" 3\r\n", b"cat\n", b"", None, b"-1", b"1.0")]
    assert found == [3, 3, "cat", None, None, "-1", "1.0"]


def test_a_class_may_have_an_empty_name() -> None:
    """As one of clevr_closest_object_distance has in CLIP_benchmark."""
    names = ("very nearby", "nearby", "near", "", "distant", "very distant")
    task = TaskConfig("classification", label="cls", classes=names, templates=("it is {c}.", "{c}"))
    classes, prompts, labels = resolve_labels(task, [Record("s/0", (), {"cls": 3}, 0), Record("s/1", (), {"cls": 5}, 1)])
    assert (classes, labels.tolist()) == (list(names), [3, 5])
    assert prompts[3] == ["it is .", ""]
    for wrong in (("cat", None), ("cat", False), ("cat", "\udcff")):
        with pytest.raises(UserError, match="class 1 has no name that is a text"):
            TaskConfig("classification", label="cls", classes=wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="'' stands twice"):
        TaskConfig("classification", label="cls", classes=("", "cat", ""))
