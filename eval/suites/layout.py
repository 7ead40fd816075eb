"""The layouts of data sets on disk or behind a URL, and the small text files in them: class names, templates and prompts.

CLIP_benchmark's layout, in a folder or behind a URL:

    ROOT/SPLIT/nshards.txt                          the number of shards in the split
    ROOT/SPLIT/0.tar ...                            webp, png, jpg or jpeg with cls (class number), npy (0/1 per class) or txt
    ROOT/dataset_type.txt                           retrieval or multilabel; if it is missing: classification
    ROOT/classnames.txt                             one class per line, in the order of their numbers
    ROOT/zeroshot_classification_templates.txt      one template per line, with {c} for the class

Published data sets in this layout are at https://huggingface.co/datasets/clip-benchmark/wds_NAME.

A folder of images with one folder per class is read as torchvision's ImageFolder reads it: ROOT/CLASS/**/*.jpg. Unlike
ImageFolder, it leaves out files that are not meant as data: hidden files and folders, the `._` files of macOS, and `__MACOSX`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal, get_args

from flexiclip.data.reading import read_whole
from flexiclip.errors import UserError

_LARGEST = 2**26  # bytes; CuPL's prompts for ImageNet have 10 MB


def read_text(place: str) -> str | None:
    """Return the UTF-8 text at a path or URL, or None if there is no file. Raises UserError if it cannot be reached or read."""
    try:
        return read_whole(place, _LARGEST).decode("utf-8-sig")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{place}: cannot be reached: {error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{place}: is not UTF-8 text; save it as UTF-8") from None


def require_text(place: str) -> str:
    """Return the UTF-8 text at a path or URL. Raises UserError if there is no file, or if it cannot be reached or read."""
    text = read_text(place)
    if text is None:
        raise UserError(f"{place}: no such file")
    return text


def lines(text: str) -> tuple[str, ...]:
    """Return the lines of a text without surrounding spaces, and without the empty lines at the end."""
    return tuple(line.strip() for line in text.rstrip().splitlines())


def read_json(place: str) -> object:
    """Return the JSON value at a path or URL. Raises UserError if it is not JSON.

    A key that an object has twice is an error too, because one of the two classes would be lost silently.
    """

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if twice := repeated(name for name, _ in pairs):
            raise UserError(f"{place}: {twice[0]!r} is given twice; remove one")
        return dict(pairs)

    try:
        return json.loads(require_text(place), object_pairs_hook=unique)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: is not JSON: {error}") from None


def repeated(names: Iterable[str]) -> list[str]:
    """Return the names that occur more than once, in the order in which they occur first."""
    return [name for name, count in Counter(names).items() if count > 1]


def printable(text: str) -> str:
    """Return a name, path or address as text that can be written: bytes that are not UTF-8 become escapes such as `\\udcff`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


_MOST_SHARDS = 100_000
_HUB = "https://huggingface.co/datasets/"


def at(root: str, *parts: str) -> str:
    """Return the path or URL of a file below the root. For a data set on the Hugging Face hub this is the URL of the file."""
    return "/".join((_on_hub(root).rstrip("/") or "/", *parts))


def _on_hub(root: str) -> str:
    """Turn the page of a data set on the hub into the URL of its files; return any other root unchanged.

    `datasets/OWNER/NAME` and `.../tree/BRANCH` become `.../resolve/BRANCH`; the default branch is main. HF_ENDPOINT replaces
    huggingface.co by another hub, as it does for Hugging Face's own tools.
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
    """Return the paths or URLs of the shards of a split, in order. Raises UserError if nshards.txt is missing or wrong."""
    place = at(root, split, "nshards.txt")
    text = read_text(place)
    if text is None:
        raise UserError(f"{place}: no such file; in CLIP_benchmark's layout, this file holds the number of shards of the split")
    if not text.strip().isdecimal() or not 0 < int(text.strip()[:9]) <= _MOST_SHARDS:
        raise UserError(f"{place}: {text.strip()[:50]!r} is not a number of shards; write one of 1 to {_MOST_SHARDS}")
    return [at(root, split, f"{number}.tar") for number in range(int(text.strip()))]


Type = Literal["classification", "retrieval", "multilabel"]
_TYPES: dict[str, Type] = {kind: kind for kind in get_args(Type)}


def dataset_type(root: str) -> Type:
    """Return the type in dataset_type.txt, or classification if there is no such file. Raises UserError for an unknown type."""
    text = read_text(at(root, "dataset_type.txt"))
    kind = "classification" if text is None else text.strip().lower()
    if kind not in _TYPES:
        raise UserError(f"{at(root, 'dataset_type.txt')}: {kind[:50]!r} is not a known type; write one of {', '.join(_TYPES)}")
    return _TYPES[kind]


def class_names(root: str) -> tuple[str, ...] | None:
    """Return the lines of classnames.txt, or None if there is no such file.

    As in CLIP_benchmark, an empty line is a class too, also at the end of the file.
    """
    text = read_text(at(root, "classnames.txt"))
    return None if text is None else tuple(line.strip() for line in text.splitlines())


def class_templates(root: str) -> tuple[str, ...] | None:
    """Return the lines of zeroshot_classification_templates.txt, or None if there is no such file."""
    text = read_text(at(root, "zeroshot_classification_templates.txt"))
    return None if text is None else lines(text)


SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".pgm", ".ppm", ".tif", ".tiff", ".avif")


def class_folders(folder: str) -> list[str]:
    """Return the sorted names of the class folders; a link to a folder counts. Raises UserError if there are none."""
    root = os.path.expanduser(folder)
    try:
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not _is_junk(entry.name))
    except OSError as error:
        raise UserError(f"images {folder}: cannot be read: {error.strerror}") from None
    if not names:
        raise UserError(f"images {folder}: has no folders; put the images of each class into a folder of its own")
    for name in names:
        if printable(name) != name:
            raise UserError(f"images {folder}: the name of the class folder {printable(name)} is not UTF-8; rename it")
    return names


def class_images(folder: str, name: str) -> list[str]:
    """Return the sorted image files of a class, in its folder and all folders below it. Links are followed.

    Raises UserError if there are none or if a folder cannot be read.
    """
    root = os.path.join(os.path.expanduser(folder), name)
    try:
        files = [path for path in _files(root, ()) if path.lower().endswith(SUFFIXES)]
    except OSError as error:
        raise UserError(f"images {folder}: the class {name!r} cannot be read: {error.strerror}: {error.filename}") from None
    if not files:
        raise UserError(f"images {folder}: the class {name!r} has no image; remove its folder or fill it")
    return sorted(files)


def _files(folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Yield all files below a folder. above: (device, inode) of its parent folders; a link back to one is not followed."""
    stat = os.stat(folder)
    here = (stat.st_dev, stat.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_junk(entry.name):
                continue
            if entry.is_dir():
                yield from _files(entry.path, (*above, here))
            else:
                yield entry.path


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
