"""A task of a suite: what the images of a data set are asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from flexiclip.errors import UserError


@dataclass(frozen=True)
class TaskConfig:
    """retrieval: captions find images and images captions. classification: an image finds its class among prompts."""

    kind: Literal["retrieval", "classification"]
    name: str | None = None  # tells two tasks of one kind apart; joins the data set's name in the rows
    label: str | None = None  # classification: `json:FIELD`, or a member such as cls that holds a class name or its number
    classes: tuple[str, ...] | dict[str, str] | None = None  # names, or label -> its words; default: the labels found, sorted
    templates: tuple[str, ...] = ("a photo of a {c}.",)  # classification: averaged prompts; {c} becomes the class's words

    def __post_init__(self) -> None:
        where = f"task {self.name or self.kind}"
        if self.kind == "retrieval":
            if self.label is not None or self.classes is not None:
                raise UserError(f"{where}: label and classes are for kind: classification; remove them")
            return
        if not self.label:
            raise UserError(f"{where}: name the field that holds the class, for example label: json:category")
        if not self.templates:
            raise UserError(f"{where}: templates is empty; write at least one, such as 'a photo of a {{c}}.'")
        for template in self.templates:
            if "{c}" not in template:
                raise UserError(f"{where}: the template {template!r} has no {{c}} for the class name")
        if self.classes is not None:
            check_classes(list(self.classes), where)
            if isinstance(self.classes, dict) and not all(isinstance(words, str) for words in self.classes.values()):
                raise UserError(f"{where}: classes maps each label to its words, both texts")

    @property
    def words(self) -> dict[str, str]:
        """Label -> the words that stand for it in a prompt; empty when the classes are derived from the labels."""
        if isinstance(self.classes, dict):
            return dict(self.classes)
        return {label: label for label in self.classes or ()}


def check_classes(classes: Sequence[str], where: str) -> None:
    """Raise UserError for an empty list of classes or a name that stands twice."""
    if not classes:
        raise UserError(f"{where}: the list of classes is empty")
    twice = sorted({name for name in classes if classes.count(name) > 1})
    if twice:
        raise UserError(f"{where}: the class {twice[0]!r} stands twice in the list of classes")
