"""The rows that `flexiclip data pack` makes samples of, and two kinds of sources: a folder of images, and shards.

A source numbers its rows from 0. The number of a row decides its key and its shard, so a source must always list its rows in
the same order, and `identity` must change when the rows do.

    ROOT/CLASS/**/*.jpg      the class is the name of the folder; a.txt and a.json beside a.jpg are its caption and its fields
    ROOT/*.tar               shards, for example of img2dataset; every member but the image is copied as it is

pack_tables.py reads tables: CSV, TSV, Parquet and Arrow.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from flexiclip.data.index import ShardIndex, read_index
from flexiclip.errors import UserError
from flexiclip.progress import progress

EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "ppm")
"""The extensions of image files, in the order in which the image of a sample is looked for."""


class Row(NamedTuple):
    """One row: its name in messages, its image (the bytes, or the path of a file), and the other members of its sample."""

    where: str
    image: bytes | str
    members: dict[str, bytes]


class BadRow(NamedTuple):
    """A row that cannot become a sample, and the reason."""

    where: str
    reason: str


class Source(Protocol):
    """Rows 0..len-1. It can be pickled, because other processes read its rows."""

    identity: dict[str, object]  # plain values that tell whether a pack that was interrupted had the same rows
    notes: list[str]  # what was guessed or left out, for the user
    captions: str  # the entry of data.captions that reads all captions; "" without captions
    damage: list[BadRow]  # parts of the source that have no rows
    labels: str  # the entry of data.labels that reads the class; "" without classes
    classes: tuple[str, ...]  # the names of the classes, in the order of their numbers

    def __len__(self) -> int: ...

    def rows(self, start: int, stop: int) -> Iterator[Row | BadRow]:
        """Yield the rows start..stop-1, in order."""


class EmptyCaptionError(ValueError):
    """A row has no caption, and its source has captions."""


def text_members(captions: Sequence[str], fields: dict[str, object], several: bool) -> dict[str, bytes]:
    """Return the members `txt` (the first caption) and `json` (the fields; with `several` also all `captions`).

    Empty captions are dropped. Raises EmptyCaptionError if none is left of those given, and UnicodeError.
    """
    texts = [text for caption in captions if (text := caption.strip())]
    if captions and not texts:
        raise EmptyCaptionError("empty caption")
    first = {"txt": texts[0].encode()} if texts else {}
    return {**first, "json": json_bytes({**fields, "captions": texts} if several else fields)}


def json_bytes(fields: dict[str, object]) -> bytes:
    """Return the fields as JSON. Values that JSON does not have, such as dates, are written as text."""
    return json.dumps(fields, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace")


def fill_templates(templates: Sequence[str], name: str) -> list[str]:
    """Return the templates with the name of a class in the place of {c}. Underscores in the name become spaces."""
    words = " ".join(name.replace("_", " ").split())
    return [template.replace("{c}", words) for template in templates]


def require_templates(templates: Sequence[str]) -> None:
    """Raise UserError for a template without {c}."""
    for template in templates:
        if "{c}" not in template:
            raise UserError(f"--template {template!r}: write {{c}} where the name of the class belongs")


class FolderSource:
    """The images below a folder, in the order of their paths. The class of an image is the first folder of its path."""

    def __init__(self, folder: str, templates: Sequence[str] = ()) -> None:
        """Raises UserError if the folder has no image, or templates are given and an image is in no class folder."""
        self.folder, self.templates = folder, tuple(templates)
        self.paths, beside = _image_files(folder)
        names = sorted({path.partition(os.sep)[0] for path in self.paths if os.sep in path})
        if templates and not all(os.sep in path for path in self.paths):
            loose = next(path for path in self.paths if os.sep not in path)
            raise UserError(f"--template: {os.path.join(folder, loose)} is in no folder that names its class")
        self.with_text = beside and not templates
        self.classes = () if self.with_text or len(names) < 2 else tuple(names)
        self.labels = "json:class" if self.classes else ""
        self.captions = "json:captions" if len(templates) > 1 else "txt" if templates or self.with_text else ""
        listed = hashlib.sha256("\n".join(self.paths).encode("utf-8", "surrogateescape")).hexdigest()
        self.identity: dict[str, object] = {"kind": "folder", "images": listed, "templates": list(templates)}
        self.damage: list[BadRow] = []
        self.notes = [] if self.captions else ["no captions: --template 'a photo of a {c}' makes them from the folders' names"]

    def __len__(self) -> int:
        return len(self.paths)

    def rows(self, start: int, stop: int) -> Iterator[Row | BadRow]:
        """Yield rows; see Source."""
        for path in self.paths[start:stop]:
            yield self._row(path)

    def _row(self, path: str) -> Row | BadRow:
        full = os.path.join(self.folder, path)
        name, inside, _ = path.partition(os.sep)
        try:
            if self.with_text:
                stem = os.path.splitext(full)[0]
                captions = [_beside(f"{stem}.txt").decode("utf-8-sig")]
                fields = {**_object(_beside(f"{stem}.json")), "path": path}
            else:
                captions = fill_templates(self.templates, name)
                fields = {"path": path, **({"class": name} if inside else {})}
            return Row(path, full, text_members(captions, fields, len(self.templates) > 1))
        except (EmptyCaptionError, UnicodeError) as error:
            return BadRow(path, str(error) if isinstance(error, EmptyCaptionError) else "caption is not UTF-8")


def _image_files(folder: str) -> tuple[list[str], bool]:
    """Return the paths of images below a folder, sorted, and whether captions lie beside them.

    Hidden files and `__MACOSX` are left out, as in evaluation. Raises UserError if there is none.
    """
    found, texts = [], False
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        inside = os.path.relpath(place, folder)
        images = [name for name in files if name[0] != "." and name.rpartition(".")[2].lower() in EXTENSIONS and "." in name]
        found += [name if inside == os.curdir else os.path.join(inside, name) for name in images]
        texts = texts or any(f"{os.path.splitext(name)[0]}.txt" in set(files) for name in images[:1])
    if not found:
        raise UserError(f"{folder}: no images ({', '.join(EXTENSIONS)}), no shards and no tables in this folder")
    return sorted(found), texts


def _beside(path: str) -> bytes:
    """Return the content of a file beside an image; b"" if there is none."""
    try:
        with open(path, "rb") as file:
            return file.read(2**24)
    except OSError:
        return b""


def _object(data: bytes) -> dict[str, object]:
    try:
        found = json.loads(data) if data else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


class ShardSource:
    """The samples of tar shards, in the order of the shards. Everything but the image is copied as it is."""

    def __init__(self, shards: Sequence[str]) -> None:
        """Raises UserError if a shard cannot be read or none has a sample."""
        self.indices: list[ShardIndex] = [read_index(shard) for shard in progress(shards, len(shards), "indexing shards")]
        self.ends: list[int] = []
        for index in self.indices:
            self.ends.append(len(index) + (self.ends[-1] if self.ends else 0))
        if not self.ends or not self.ends[-1]:
            raise UserError(f"{shards[0] if shards else 'no shards'}: no samples: members are named KEY.jpg, KEY.txt, KEY.json")
        sizes = [[os.path.basename(index.url), len(index), index.content_bytes] for index in self.indices]
        self.identity: dict[str, object] = {"kind": "shards", "shards": sizes}
        self.damage = [BadRow(index.url, index.damage) for index in self.indices if index.damage]
        self.notes = [said] if (said := _not_downloaded({os.path.dirname(shard) for shard in shards})) else []
        self.captions = "txt" if any("txt" in index.extensions for index in self.indices) else ""
        self.labels = "cls" if all("cls" in index.extensions for index in self.indices) else ""
        self.classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.ends[-1]

    def rows(self, start: int, stop: int) -> Iterator[Row | BadRow]:
        """Yield rows; see Source."""
        first = 0
        for index, end in zip(self.indices, self.ends, strict=True):
            if start < end and first < stop:
                yield from _samples(index, max(start - first, 0), min(stop, end) - first)
            first = end


def _samples(index: ShardIndex, start: int, stop: int) -> Iterator[Row | BadRow]:
    """Yield the samples start..stop-1 of one shard."""
    with open(index.url, "rb", buffering=0) as file:
        for number in range(start, stop):
            where, members = f"{index.url}: {index.key(number)}", index.members(number)
            begin = members[0].offset
            data = os.pread(file.fileno(), members[-1].end - begin, begin)
            content = {member.name: data[member.offset - begin : member.end - begin] for member in members}
            image = next((content[name] for name in EXTENSIONS if name in content), None)
            others = {name: value for name, value in content.items() if name not in EXTENSIONS}
            if image is None:
                yield BadRow(where, "no image")
            elif "txt" in others and not others["txt"].strip():
                yield BadRow(where, "empty caption")
            else:
                yield Row(where, image, others)


def _not_downloaded(folders: set[str]) -> str:
    """Return what img2dataset's statistics beside the shards say about rows that never became samples; "" if nothing."""
    asked, status = 0, dict[str, int]()
    for path in (path for folder in sorted(folders) for path in sorted(Path(folder or ".").glob("*_stats.json"))):
        stats = _object(_beside(str(path)))
        counts = stats.get("status_dict")
        if isinstance(counts, dict) and isinstance(stats.get("count"), int):
            asked += int(str(stats["count"]))
            for name, count in counts.items():
                status[str(name)] = status.get(str(name), 0) + (count if isinstance(count, int) else 0)
    failed = sorted(((count, name) for name, count in status.items() if name != "success"), reverse=True)
    if not failed:
        return ""
    why = "; ".join(f"{count:,} x {name}" for count, name in failed[:3])
    return f"{sum(count for count, _ in failed):,} of {asked:,} rows were not downloaded by img2dataset: {why}"
