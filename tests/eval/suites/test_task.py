"""Tasks of a suite: the keys of each kind, classes and their words, and the prompts that are made of them."""

from __future__ import annotations

from typing import Any

import pytest
from flexiclip_eval import TaskConfig
from flexiclip_eval.data.images import Record
from flexiclip_eval.data.labels import resolve_labels
from flexiclip_eval.suites.task import check_classes, check_templates, check_texts, fill_templates

from flexiclip.errors import UserError


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


KEYS = {
    "merge_captions": (False, {"retrieval"}),
    "ties": ("topk", {"retrieval", "classification"}),
    "classes": (("a", "b"), {"classification", "multilabel", "linear_probe"}),
    "templates": (("{c}",), {"classification", "multilabel"}),
    "prompts": ({"a": ["x"]}, {"classification", "multilabel"}),
}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("kind", ["retrieval", "classification", "multilabel", "choice", "linear_probe"])
def test_task_config_refuses_the_keys_of_other_kinds(kind: Any, key: str) -> None:
    value, kinds = KEYS[key]
    given: dict[str, Any] = {key: value} | ({} if kind == "retrieval" else {"label": "cls"})
    if kind in kinds:
        assert getattr(TaskConfig(kind, **given), key) == value
        return
    with pytest.raises(UserError, match=f"^task mine: {key} is not for kind: {kind}; remove it$"):
        TaskConfig(kind, name="mine", **given)


def test_task_config_says_what_its_kind_reads() -> None:
    kinds = {kind: TaskConfig(kind, label="cls") for kind in ("classification", "multilabel", "choice", "linear_probe")}  # type: ignore[arg-type]
    kinds["retrieval"] = TaskConfig("retrieval")
    assert {kind for kind, task in kinds.items() if task.reads_captions} == {"retrieval", "choice"}
    assert {kind for kind, task in kinds.items() if task.reads_prompts} == {"classification", "multilabel"}
    assert {kind for kind, task in kinds.items() if task.trains} == {"linear_probe"}
    assert {kind: task.row_kind for kind, task in kinds.items() if task.row_kind != kind} == {"multilabel": "classification"}


def test_one_template_that_is_not_in_a_list_is_a_template_and_a_file_is_not() -> None:
    assert TaskConfig("classification", label="cls", templates="a {c}").templates == ("a {c}",)
    assert TaskConfig("classification", label="cls", templates="templates.txt").templates == "templates.txt"


def test_fill_templates_has_every_template_for_each_word() -> None:
    assert fill_templates(("a {c}", "the {c}, a {c}"), ("cat", "kitten {c}")) == [
        "a cat",
        "the cat, a cat",
        "a kitten {c}",
        "the kitten {c}, a kitten {c}",
    ]


def test_check_classes_and_templates_accept_what_can_be_scored() -> None:
    check_classes(["near", "", "distant"], "here")
    check_classes(["crane", "crane"], "here", ["crane"])
    check_templates(["{c}"], "here")
    for wrong, said in (([], "is empty; name at least one"), (["a", 3], "class 1 has no name that is a text: 3")):
        with pytest.raises(UserError, match=f"^here: .*{said}"):
            check_classes(wrong, "here")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^here: the class 'b' is given twice .*write repeats: \[b\]$"):
        check_classes(["a", "b", "a", "b"], "here", ["a"])


@pytest.mark.parametrize("value", ["", [], ["a", 3], 3, {"a": "b"}])
def test_check_texts_wants_a_text_or_several(value: object) -> None:
    check_texts({"cat": "a cat", "dog": ["a dog", "a puppy"], "": ("x",)}, "here", "its words")
    with pytest.raises(UserError, match=r"^here: 'dog' must be a text with its words, not "):
        check_texts({"cat": "a cat", "dog": value}, "here", "its words")
    with pytest.raises(UserError, match=r"^here: 3 must be a text with its words, not 'a cat'$"):
        check_texts({3: "a cat"}, "here", "its words")  # type: ignore[dict-item]
