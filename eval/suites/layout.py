"""CLIP_benchmark's layout of a data set, in a folder or behind a URL:

    ROOT/SPLIT/nshards.txt                          how many shards the split has
    ROOT/SPLIT/0.tar ...                            webp, png, jpg or jpeg with cls (a class's number), npy (0/1 a class) or txt
    ROOT/dataset_type.txt                           retrieval or multilabel; absent: classification
    ROOT/classnames.txt                             a class a line, in the order of their numbers
    ROOT/zeroshot_classification_templates.txt      a template a line, {c} for the class

Published ones are https://huggingface.co/datasets/clip-benchmark/wds_NAME.
"""

from __future__ import annotations

import os
from typing import Literal

from flexiclip.errors import UserError

from .texts import lines, read_text

_MOST_SHARDS = 100_000
_HUB = "https://huggingface.co/datasets/"


def at(root: str, *parts: str) -> str:
    """A place below the root; of a data set on Hugging Face's hub, the address of the file."""
    return "/".join((_on_hub(root).rstrip("/") or "/", *parts))


def _on_hub(root: str) -> str:
    """A data set's page (`datasets/OWNER/NAME`, `.../tree/BRANCH`) as where its files are (`.../resolve/BRANCH`, default main).

    HF_ENDPOINT puts another hub in the place of huggingface.co, as it does for Hugging Face's own tools.
    """
    owner, _, rest = root.removeprefix(_HUB).partition("/")
    name, *branch = rest.rstrip("/").split("/")
    if not root.startswith(_HUB) or not owner or not name:
        return root
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    if branch[:1] in (["tree"], ["resolve"], ["raw"]):
        del branch[0]
    files = "/".join((owner, name, "resolve", *(branch or ["main"])))
    return f"{endpoint}/datasets/{files}" if endpoint else f"{_HUB}{files}"


def shard_places(root: str, split: str) -> list[str]:
    """The split's shards in the order of their numbers. Raises UserError for a missing or wrong nshards.txt."""
    place = at(root, split, "nshards.txt")
    text = read_text(place)
    if text is None:
        raise UserError(f"{place}: no such file; a data set in CLIP_benchmark's layout says there how many shards the split has")
    if not text.strip().isdecimal() or not 0 < int(text.strip()[:9]) <= _MOST_SHARDS:
        raise UserError(f"{place}: {text.strip()[:50]!r} is no number of shards")
    return [at(root, split, f"{number}.tar") for number in range(int(text.strip()))]


Type = Literal["classification", "retrieval", "multilabel"]
_TYPES: dict[str, Type] = {"classification": "classification", "retrieval": "retrieval", "multilabel": "multilabel"}


def dataset_type(root: str) -> Type:
    """What dataset_type.txt says; classification without one. Raises UserError for any other word."""
    text = read_text(at(root, "dataset_type.txt"))
    kind = "classification" if text is None else text.strip().lower()
    if kind not in _TYPES:
        raise UserError(f"{at(root, 'dataset_type.txt')}: {kind[:50]!r} is none of {', '.join(_TYPES)}")
    return _TYPES[kind]


def class_names(root: str) -> tuple[str, ...] | None:
    """The lines of classnames.txt, None without one. As in CLIP_benchmark, an empty line is a class too, also the last one."""
    text = read_text(at(root, "classnames.txt"))
    return None if text is None else tuple(line.strip() for line in text.splitlines())


def class_templates(root: str) -> tuple[str, ...] | None:
    """The lines of zeroshot_classification_templates.txt, None without one."""
    text = read_text(at(root, "zeroshot_classification_templates.txt"))
    return None if text is None else lines(text)
