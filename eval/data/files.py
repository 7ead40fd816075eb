"""Samples that are the user's own image files: a folder a class, or a table of paths and captions (as open_clip's --csv-...).

images: data/pets            data/pets/CLASS/**/*.jpg; the label is `folder`
csv: data/captions.csv       columns filepath and title, or as image_column and caption_column say; a label is a column
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL.Image import Image

from flexiclip.data.fields import BadSample
from flexiclip.data.images import ImageError, decode_image
from flexiclip.data.reading import read_whole
from flexiclip.errors import UserError

from ..suites.dataset import DatasetConfig
from ..suites.folder import class_folders, class_images
from ..suites.texts import require_text
from .shards import text_label
from .source import Item, Label

_LARGEST = 2**28  # bytes of an image file


class FolderSource:
    """See Source. Raises UserError for a class of a task without a folder, or a folder without an image."""

    def __init__(self, config: DatasetConfig, folder: str) -> None:
        names = class_folders(folder)
        for task in config.tasks:
            missing = sorted(set(task.words) - set(names)) if task.label == "folder" else []
            if missing:
                raise UserError(f"images {folder}: the class {missing[0]!r} of the suite has no folder, so no image")
        self.folder = folder
        self.files = [(path, name) for name in names for path in class_images(folder, name)]

    def __len__(self) -> int:
        return len(self.files)

    def item(self, number: int, label_keys: Sequence[str]) -> Item:
        """See Source."""
        path, name = self.files[number]
        image = read_image(self.folder, path)
        return Item(f"{name}/{os.path.basename(path)}", image, (), {key: name if key == "folder" else None for key in label_keys})

    def fingerprint(self) -> str:
        """See Source."""
        return files_hash([path for path, _ in self.files], self.folder)


@dataclass
class _Entry:
    """An image of a table: its path as written, its captions, and the other columns of its first line."""

    written: str
    captions: list[str]
    columns: dict[str, str]


class TableSource:
    """See Source: an item for each path, in the order of their first lines. Raises UserError for a line without its image."""

    def __init__(self, config: DatasetConfig, table: str) -> None:
        self.table = table
        self.folder = os.path.dirname(os.path.expanduser(table))
        entries: dict[str, _Entry] = {}
        for line, row in _rows(table, [config.image_column, *([config.caption_column] if config.has_captions else [])]):
            written, caption = row[config.image_column].strip(), row.get(config.caption_column, "").strip()
            where = f"{table}: line {line}"
            if not written or not os.path.isfile(self._path(written)):
                raise UserError(f"{where}: a caption without an image: {written or 'its ' + config.image_column!r} is no file")
            if config.has_captions and not caption:
                raise UserError(f"{where}: {config.caption_column!r} is empty; remove the line or give a caption")
            entries.setdefault(written, _Entry(written, [], row)).captions.append(caption)
        self.entries = list(entries.values())

    def __len__(self) -> int:
        return len(self.entries)

    def item(self, number: int, label_keys: Sequence[str]) -> Item:
        """See Source."""
        entry = self.entries[number]
        image = read_image(self.table, self._path(entry.written))
        labels: dict[str, Label] = {key: text_label(entry.columns.get(key, "")) for key in label_keys}
        return Item(entry.written, image, tuple(entry.captions), labels)

    def fingerprint(self) -> str:
        """See Source."""
        rows = json.dumps([[entry.written, entry.captions, entry.columns] for entry in self.entries])
        return hashlib.sha256(
            (rows + files_hash([self._path(e.written) for e in self.entries], self.folder)).encode()
        ).hexdigest()

    def _path(self, written: str) -> str:
        return os.path.join(self.folder, os.path.expanduser(written))


def files_hash(paths: Sequence[str], folder: str) -> str:
    """A hash of the files' places below the folder, their sizes and times of change: reading them would cost the pass itself."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            stat = os.stat(path)
            digest.update(f"{os.path.relpath(path, folder or os.curdir)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        except OSError:  # gone meanwhile: it will be a bad sample
            digest.update(f"{path} is gone\n".encode())
    return digest.hexdigest()


def read_image(source: str, path: str) -> Image:
    """An image file, decoded. Raises BadSample."""
    try:
        return decode_image(read_whole(path, _LARGEST))
    except ImageError as error:
        raise BadSample(source, path, f"image cannot be decoded: {error}") from None
    except OSError as error:
        raise BadSample(source, path, f"cannot be read: {error}") from None


def _rows(table: str, wanted: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, its columns by name) of a table with a heading, cut at tabs if the heading has one, else at commas."""
    text = require_text(table)
    heading = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if "\t" in heading else ",", strict=True)
    known = ", ".join(reader.fieldnames or ())
    missing = [name for name in wanted if name not in (reader.fieldnames or ())]
    if missing:
        raise UserError(f"{table}: no column {missing[0]!r}; it has {known}: name image_column and caption_column")
    try:
        for row in reader:
            yield reader.line_num, {name: value or "" for name, value in row.items() if name is not None}
    except csv.Error as error:
        raise UserError(f"{table}: line {reader.line_num}: not CSV: {error}") from None
