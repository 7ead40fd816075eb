"""Labels in JSON and members: those that training takes are the same classes here; each mistake is said with its sample."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flexiclip_eval import TaskConfig
from flexiclip_eval.data.images import Record
from flexiclip_eval.data.labels import resolve_labels, resolve_many
from flexiclip_eval.data.shards import json_label

from flexiclip.data.samples import BadSample, Labels, Members
from flexiclip.errors import UserError

CLASSES = ("cat", "dog", "True", "2020", "1.5")


def trained(value: Any, classes: tuple[str, ...] = CLASSES) -> tuple[int, ...] | None:
    """What training makes of a JSON label; None: a bad sample."""
    try:
        return Labels("json:label", classes).read(Members("s", "0", {"json": json.dumps({"label": value}).encode()}))
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
    with pytest.raises(UserError, match="json:label gives no class, or an empty class name"):
        resolve_labels(task, [Record("s/0", (), {"json:label": json_label("")}, 0)])


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
    with pytest.raises(UserError, match="'' is given twice"):
        TaskConfig("classification", label="cls", classes=("", "cat", ""))


def test_labels_by_name_and_by_number() -> None:
    by_number = TaskConfig("classification", label="cls", classes={"cat": "a cat", "dog": "a dog"})
    records = [Record("s/0", (), {"cls": 1}, 0), Record("s/1", (), {"cls": "cat"}, 1)]
    classes, words, labels = resolve_labels(by_number, records)
    assert (classes, words, labels.tolist()) == (["cat", "dog"], [["a photo of a a cat."], ["a photo of a a dog."]], [1, 0])
    found = TaskConfig("classification", label="cls")
    classes, words, labels = resolve_labels(found, [Record("s/0", (), {"cls": "pear"}, 0), Record("s/1", (), {"cls": "fig"}, 1)])
    assert (classes, words, labels.tolist()) == (["fig", "pear"], [["a photo of a fig."], ["a photo of a pear."]], [1, 0])


def test_numbers_that_a_mapping_names_are_its_labels_not_places() -> None:
    stars = TaskConfig("classification", label="cls", classes={"1": "bad", "10": "great", "2": "good"})
    records = [Record(f"s/{label}", (), {"cls": label}, label) for label in (1, 2, 10)]
    classes, _, labels = resolve_labels(stars, records)
    assert [classes[i] for i in labels.tolist()] == ["1", "2", "10"]
    with pytest.raises(UserError, match="the label 0 of s/0 is not among its 3 classes"):
        resolve_labels(stars, [Record("s/0", (), {"cls": 0}, 0)])


def test_labels_that_are_missing_or_unknown_name_the_sample() -> None:
    task = TaskConfig("classification", label="cls", classes=("cat", "dog"))
    with pytest.raises(UserError, match="s/7 has no cls"):
        resolve_labels(task, [Record("s/7", (), {"cls": None}, 7)])
    with pytest.raises(UserError, match="'cow' of s/8 is not among its 2 classes"):
        resolve_labels(task, [Record("s/8", (), {"cls": "cow"}, 8)])
    with pytest.raises(UserError, match="label 2 of s/9"):
        resolve_labels(task, [Record("s/9", (), {"cls": 2}, 9)])


def _record(number: int, captions: tuple[str, ...] = (), **labels: Any) -> Record:
    return Record(f"s/{number}", captions, labels, number)


def test_labels_of_many_classes() -> None:
    task = TaskConfig("multilabel", label="npy", classes=("a", "b", "c", "d"))
    classes, _, member = resolve_many(task, [_record(0, npy=(1, 3)), _record(1, npy=()), _record(2, npy=("c",))])
    assert classes == ["a", "b", "c", "d"]
    assert member.int().tolist() == [[0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]]
    with pytest.raises(UserError, match="the label 9 of s/0 is not among its 4 classes"):
        resolve_many(task, [_record(0, npy=(9,))])
