"""A task of a suite: what the images of a data set are asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from flexiclip_eval.suites.layout import printable

from flexiclip.errors import UserError

Kind = Literal["retrieval", "classification", "multilabel", "choice", "linear_probe"]
DEFAULT_TEMPLATES = ("a photo of a {c}.",)

_PROMPTED = {"label", "classes", "repeats", "templates", "prompts"}
_KEYS: dict[str, set[str]] = {
    "retrieval": {"merge_captions", "ties"},
    "classification": _PROMPTED | {"ties"},
    "multilabel": _PROMPTED,
    "choice": {"label"},
    "linear_probe": {"label", "classes", "repeats"},
}
"""The keys that each kind reads, besides name."""


@dataclass(frozen=True)
class TaskConfig:
    """retrieval: captions find images and images captions. classification: an image finds its class among prompts. multilabel:
    each class finds its images. choice: an image finds its caption among wrong ones. linear_probe: logistic regression learns the
    classes from the embeddings of the data set's `train`.
    """

    kind: Kind
    name: str | None = None  # tells two tasks of one kind apart; joins the data set's name in the rows
    label: str | None = None
    """`json:FIELD`, or a member. classification, linear_probe: holds a class name or its number, such as cls. multilabel: the
    classes of an image, a list in JSON or a 0/1 vector in a member such as npy. choice: what the images of one instance share."""
    classes: str | tuple[str, ...] | dict[str, Any] | None = None
    """Names in the order of their numbers, or label -> its words (a text or several), or a file or URL with either, a name a line
    or JSON; default: those beside the samples, else the labels found, sorted."""
    repeats: tuple[str, ...] = ()  # names that may stand twice among classes, told apart by number alone
    templates: str | tuple[str, ...] = DEFAULT_TEMPLATES
    """Averaged prompts, in which {c} becomes the class's words; or a file or URL of them, one a line."""
    prompts: str | dict[str, Any] | None = None
    """Class -> its whole prompts, any number of them, in place of templates (as CuPL has it); or a JSON file or URL of that."""
    merge_captions: bool = True
    """retrieval: captions of equal text are one query with the images of all of them; false: each stands alone, as CLIP_benchmark
    has it, and another image's equal caption is wrong. A `root` without tasks has false."""
    ties: Literal["chance", "topk"] = "chance"
    """What items of equal score are worth. chance: the mean over every order, so that a model that knows nothing scores chance.
    topk: the one order in which torch.topk leaves them, which is in CLIP_benchmark's numbers; so of a `root` without tasks."""

    def __post_init__(self) -> None:
        where = f"task {self.name or self.kind}"
        for key in fields(self):
            if key.name not in _KEYS[self.kind] | {"kind", "name"} and getattr(self, key.name) != key.default:
                raise UserError(f"{where}: {key.name} is not for kind: {self.kind}; remove it")
        if not self.label and self.kind not in ("retrieval", "choice"):
            raise UserError(f"{where}: name the field that holds the class, for example label: json:category")
        if isinstance(self.templates, str) and "{c}" in self.templates:  # one template without its brackets
            object.__setattr__(self, "templates", (self.templates,))
        if not isinstance(self.templates, str):
            check_templates(self.templates, where)
        if self.classes is not None and not isinstance(self.classes, str):
            check_classes(list(self.classes), where, self.repeats)
            if isinstance(self.classes, dict):
                check_texts(self.classes, f"{where}: classes", "its words, a text or several")
        if isinstance(self.prompts, dict):
            check_texts(self.prompts, f"{where}: prompts", "its prompts, a text or several")

    @property
    def reads_captions(self) -> bool:
        """Whether the captions of the images matter to it."""
        return self.kind in ("retrieval", "choice")

    @property
    def reads_prompts(self) -> bool:
        """Whether its classes are texts that are embedded."""
        return self.kind in ("classification", "multilabel")

    @property
    def row_kind(self) -> str:
        """What its rows are told apart by, beside their name: those of a multilabel task are called classification too."""
        return "classification" if self.kind == "multilabel" else self.kind

    @property
    def trains(self) -> bool:
        """Whether it needs the training split."""
        return self.kind == "linear_probe"

    @property
    def words(self) -> dict[str, tuple[str, ...]]:
        """Class -> the words that stand for it in a prompt; empty when the classes are derived from the labels.

        A name that stands twice among the classes is told apart: `missile`, `missile #2`.
        """
        assert not isinstance(self.classes, str), "complete.py reads files"
        if isinstance(self.classes, dict):
            return {label: _several(words) for label, words in self.classes.items()}
        words: dict[str, tuple[str, ...]] = {}
        for name in self.classes or ():
            count = sum(known[0] == name for known in words.values())
            words[f"{name} #{count + 1}" if count else name] = (name,)
        return words

    def class_prompts(self, words: dict[str, tuple[str, ...]]) -> list[list[str]]:
        """The prompts of each class, as many as it has; words: see `words`. Raises UserError for a class without any."""
        assert not isinstance(self.templates, str), "complete.py reads files"
        assert not isinstance(self.prompts, str), "complete.py reads files"
        if self.prompts is None:
            return [[template.replace("{c}", word) for word in each for template in self.templates] for each in words.values()]
        found = []
        for label, each in words.items():
            key = next((key for key in (label, *each) if key in self.prompts), None)
            if key is None or not self.prompts[key]:
                raise UserError(f"task {self.name or self.kind}: prompts has none for the class {label!r}")
            found.append(list(_several(self.prompts[key])))
        return found


def _several(texts: Any) -> tuple[str, ...]:
    return (texts,) if isinstance(texts, str) else tuple(texts)


def check_texts(texts: dict[str, Any], where: str, what: str) -> None:
    """Raise UserError unless each value is a text or a list of them."""
    for label, value in texts.items():
        right = isinstance(value, str) or (isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value))
        if not isinstance(label, str) or not right or not value:
            raise UserError(f"{where}: {label!r} must be a text with {what}, not {value!r}")


def check_templates(templates: Sequence[str], where: str) -> None:
    """Raise UserError for no templates, or one without {c}."""
    if not templates:
        raise UserError(f"{where}: templates is empty; write at least one, such as 'a photo of a {{c}}.'")
    for template in templates:
        if "{c}" not in template:
            raise UserError(f"{where}: the template {template!r} has no {{c}} for the class name")


def check_classes(classes: Sequence[str], where: str, repeats: Sequence[str] = ()) -> None:
    """Raise UserError for an empty list of classes, what is no text, or a name that stands twice and not among `repeats`.

    An empty text is a name, as in CLIP_benchmark: clevr_closest_object_distance has one, between "near" and "distant".
    """
    if not classes:
        raise UserError(f"{where}: the list of classes is empty")
    for number, name in enumerate(classes):
        if not isinstance(name, str) or printable(name) != name:
            raise UserError(f"{where}: class {number} has no name that is a text: {name!r}; put it into quotes")
    twice = sorted(name for name, count in Counter(classes).items() if count > 1 and name not in repeats)
    if twice:
        raise UserError(
            f"{where}: the class {twice[0]!r} stands twice in the list of classes; if both are meant, write repeats: [{twice[0]}]"
        )
