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

from flexiclip_eval.data.shards import Item, Label, text_label
from flexiclip_eval.suites.dataset import DatasetConfig
from flexiclip_eval.suites.layout import class_folders, class_images, printable, require_text
from PIL.Image import Image

from flexiclip.data.images import ImageError, decode_image
from flexiclip.data.reading import read_whole
from flexiclip.data.samples import BadSample
from flexiclip.errors import UserError

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
        sample = printable(f"{name}/{os.path.basename(path)}")
        return Item(sample, image, (), {key: name if key == "folder" else None for key in label_keys})

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
        entries: dict[str, _Entry] = {}  # by place: `a.jpg` and `./a.jpg` are one image
        for line, row in _rows(table, [config.image_column, *([config.caption_column] if config.has_captions else [])]):
            written, caption = row[config.image_column].strip(), row.get(config.caption_column, "").strip()
            where = f"{table}: line {line}"
            if not written or not os.path.isfile(self._path(written)):
                wrong = f"{written!r} is no file" if written else f"{config.image_column!r} is empty"
                raise UserError(f"{where}: a caption without an image: {wrong}")
            if config.has_captions and not caption:
                raise UserError(f"{where}: {config.caption_column!r} is empty; remove the line or give a caption")
            entries.setdefault(os.path.normpath(self._path(written)), _Entry(written, [], row)).captions.append(caption)
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
            digest.update(os.fsencode(f"{os.path.relpath(path, folder or os.curdir)} {stat.st_size} {stat.st_mtime_ns}\n"))
        except OSError:  # gone meanwhile: it will be a bad sample
            digest.update(os.fsencode(f"{path} is gone\n"))
    return digest.hexdigest()


def read_image(source: str, path: str) -> Image:
    """An image file, decoded. Raises BadSample."""
    try:
        return decode_image(read_whole(path, _LARGEST))
    except ImageError as error:
        raise BadSample(printable(source), printable(path), f"image cannot be decoded: {error}") from None
    except OSError as error:
        raise BadSample(printable(source), printable(path), printable(f"cannot be read: {error}")) from None


def _rows(table: str, wanted: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(the line where it begins, its cells by column) for each row of a table with a heading; blank lines are left out.

    Cells end at tabs where the heading then has the first wanted column, else at commas. A row may have fewer cells than the
    heading, the rest being empty, but not more: what follows an unquoted comma or tab would be lost, or be in another column.
    """
    text = require_text(table)
    try:
        tabs = _heading(table, text, "\t")
    except UserError:  # quotes end at commas there
        tabs = []
    delimiter = "\t" if wanted[0] in tabs else ","
    heading = tabs if delimiter == "\t" else _heading(table, text, ",")
    missing = [name for name in wanted if name not in heading]
    if missing:
        known = max(tabs, heading, key=len)
        raise UserError(f"{table}: no column {missing[0]!r}; it has {', '.join(known)}: name image_column and caption_column")
    twice = next((name for name in heading if name and heading.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{table}: its heading has two columns {twice!r}; rename or remove one")
    for number, (line, cells) in enumerate(_records(table, text, delimiter)):
        if len(cells) > len(heading):
            what = "a tab" if delimiter == "\t" else "a comma"
            raise UserError(
                f"{table}: line {line}: {len(cells)} cells under a heading of {len(heading)}; a cell with {what} needs quotes"
            )
        if number:
            yield line, dict(zip(heading, [*cells, *[""] * (len(heading) - len(cells))], strict=True))


def _heading(table: str, text: str, delimiter: str) -> list[str]:
    """The first row. Raises UserError for a table without one."""
    for _, cells in _records(table, text, delimiter):
        return cells
    raise UserError(f"{table}: is empty; its first line names the columns")


def _records(table: str, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(the line where it begins, its cells) for each row that is not blank; a quoted cell may go over several lines."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{table}: line {line}: not CSV: {error}") from None
