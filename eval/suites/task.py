"""A task of a suite: what a model is scored on with the images of a data set, and the keys of each kind of task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from flexiclip_eval.suites.layout import printable, repeated

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
"""The keys that each kind of task reads, in addition to kind and name."""


@dataclass(frozen=True)
class TaskConfig:
    """A task on the images of a data set. Raises UserError for a key that its kind does not read, or for a wrong value.

    The kinds are:

    - `retrieval`: captions find their images, and images find their captions.
    - `classification`: an image finds its class among the prompts of all classes.
    - `multilabel`: each class finds its images.
    - `choice`: an image finds its caption among wrong captions.
    - `linear_probe`: logistic regression learns the classes from the embeddings of the data set's training split (`train`).
    """

    kind: Kind
    """The kind of task; the kinds are listed above."""
    name: str | None = None
    """Tells two tasks of the same kind apart; it is appended to the name of the data set in the rows."""
    label: str | None = None
    """The field that holds the label: `json:FIELD`, or the name of a member. For classification and linear_probe it holds the
    name of a class or its number (such as cls). For multilabel it holds the classes of an image: a list in JSON, or a 0/1 vector
    in a member such as npy. For choice it holds what the images of one instance share."""
    classes: str | tuple[str, ...] | dict[str, Sequence[str]] | None = None
    """The names of the classes in the order of their numbers; or {label: its words}, one text or several; or a file or URL with
    either, as JSON or with one name per line. Default: the names next to the samples, else the sorted labels of all samples."""
    repeats: tuple[str, ...] = ()
    """Names that may occur several times among the classes, which are then told apart by their numbers alone."""
    templates: str | tuple[str, ...] = DEFAULT_TEMPLATES
    """Templates of prompts, in which {c} is replaced by the words of the class, or a file or URL with one template per line. The
    embeddings of all prompts of a class are averaged."""
    prompts: str | dict[str, Sequence[str]] | None = None
    """{class: its prompts}, any number of them, in place of templates, as in CuPL; or a JSON file or URL that holds this."""
    merge_captions: bool = True
    """For retrieval. True: captions of equal text are one query, and the images of all of them are right. False: each caption is
    its own query, and an equal caption of another image is wrong, as in CLIP_benchmark. A `root` without tasks uses False."""
    ties: Literal["chance", "topk"] = "chance"
    """How items of equal score count. `chance`: the mean over every order, so that a model that knows nothing scores exactly
    chance. `topk`: the order in which torch.topk leaves them, as in CLIP_benchmark's numbers; a `root` without tasks uses it for
    retrieval and classification."""

    def __post_init__(self) -> None:
        where = f"task {self.name or self.kind}"
        for key in fields(self):
            if key.name not in _KEYS[self.kind] | {"kind", "name"} and getattr(self, key.name) != key.default:
                raise UserError(f"{where}: {key.name} is not for kind: {self.kind}; remove it")
        if not self.label and self.kind not in ("retrieval", "choice"):
            raise UserError(f"{where}: name the field that holds the class, for example label: json:category")
        if isinstance(self.templates, str) and "{c}" in self.templates:  # a single template that is not in a list
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
        """Whether the task needs the captions of the images."""
        return self.kind in ("retrieval", "choice")

    @property
    def reads_prompts(self) -> bool:
        """Whether the task embeds prompts for its classes."""
        return self.kind in ("classification", "multilabel")

    @property
    def row_kind(self) -> str:
        """The kind that tells the rows of two tasks of one name apart; multilabel counts as classification."""
        return "classification" if self.kind == "multilabel" else self.kind

    @property
    def trains(self) -> bool:
        """Whether the task needs the training split."""
        return self.kind == "linear_probe"

    @property
    def words(self) -> dict[str, tuple[str, ...]]:
        """{class: the words for it in a prompt}; empty if the classes are taken from the labels of the samples.

        A name that occurs twice among the classes is numbered: `missile`, `missile #2`.
        """
        assert not isinstance(self.classes, str), "load.py reads files"
        if isinstance(self.classes, dict):
            return {label: _several(words) for label, words in self.classes.items()}
        words: dict[str, tuple[str, ...]] = {}
        for name in self.classes or ():
            count = sum(known[0] == name for known in words.values())
            words[f"{name} #{count + 1}" if count else name] = (name,)
        return words

    def class_prompts(self, words: dict[str, tuple[str, ...]]) -> list[list[str]]:
        """Return the prompts of each class, in the order of `words`. Raises UserError for a class without prompts.

        words: {class: the words for it in a prompt}, like the property `words`.
        """
        assert not isinstance(self.templates, str), "load.py reads files"
        assert not isinstance(self.prompts, str), "load.py reads files"
        if self.prompts is None:
            return [fill_templates(self.templates, each) for each in words.values()]
        found = []
        for label, each in words.items():
            key = next((key for key in (label, *each) if key in self.prompts), None)
            if key is None or not self.prompts[key]:
                raise UserError(f"task {self.name or self.kind}: prompts has no entry for the class {label!r}; add one")
            found.append(list(_several(self.prompts[key])))
        return found


def fill_templates(templates: Sequence[str], words: Sequence[str]) -> list[str]:
    """Return the prompts of one class: each of its words in the place of {c} in every template."""
    return [template.replace("{c}", word) for word in words for template in templates]


def _several(texts: Sequence[str]) -> tuple[str, ...]:
    return (texts,) if isinstance(texts, str) else tuple(texts)


def check_texts(texts: Mapping[str, object], where: str, what: str) -> None:
    """Raise UserError unless each key is a text and each value is a text or a list of texts."""
    for label, value in texts.items():
        right = isinstance(value, str) or (isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value))
        if not isinstance(label, str) or not right or not value:
            raise UserError(f"{where}: {label!r} must be a text with {what}, not {value!r}")


def check_templates(templates: Sequence[str], where: str) -> None:
    """Raise UserError if there are no templates, or if one has no {c} for the class."""
    if not templates:
        raise UserError(f"{where}: templates is empty; write at least one, such as 'a photo of a {{c}}.'")
    for template in templates:
        if "{c}" not in template:
            raise UserError(f"{where}: the template {template!r} has no {{c}} for the class name")


def check_classes(classes: Sequence[str], where: str, repeats: Sequence[str] = ()) -> None:
    """Raise UserError for an empty list of classes, a name that is not a text, or a repeated name that is not in `repeats`.

    An empty text is a valid name, as in CLIP_benchmark: clevr_closest_object_distance has one between "near" and "distant".
    """
    if not classes:
        raise UserError(f"{where}: the list of classes is empty; name at least one class")
    for number, name in enumerate(classes):
        if not isinstance(name, str) or printable(name) != name:
            raise UserError(f"{where}: class {number} has no name that is a text: {name!r}; put it into quotes")
    twice = sorted(set(repeated(classes)) - set(repeats))
    if twice:
        raise UserError(
            f"{where}: the class {twice[0]!r} is given twice in the list of classes; to keep both, write repeats: [{twice[0]}]"
        )
