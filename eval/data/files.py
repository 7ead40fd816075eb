"""Reads samples from the user's own image files: a folder with one folder per class, or a table of paths and captions.

    images: data/pets            data/pets/CLASS/**/*.jpg; the label is called `folder`
    csv: data/captions.csv       the columns filepath and title, or image_column and caption_column; other columns are labels

The columns of a table have the same meaning as in open_clip (--csv-img-key, --csv-caption-key).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from flexiclip_eval.data.shards import Item, Label, text_label
from flexiclip_eval.suites.dataset import DatasetConfig
from flexiclip_eval.suites.layout import class_folders, class_images, printable, repeated, require_text
from PIL.Image import Image

from flexiclip.config.paths import beside
from flexiclip.data.images import ImageError, decode_image
from flexiclip.data.reading import read_whole
from flexiclip.data.samples import BadSample
from flexiclip.errors import UserError

_LARGEST = 2**28  # bytes; a larger image file is not read


class FolderSource:
    """A Source of the images below a folder with one folder per class, in the order of classes and paths.

    Raises UserError if a class of a task has no folder, or if a folder has no image.
    """

    def __init__(self, config: DatasetConfig, folder: str) -> None:
        names = class_folders(folder)
        for task in config.tasks:
            missing = sorted(set(task.words) - set(names)) if task.label == "folder" else []
            if missing:
                raise UserError(f"images {folder}: the class {missing[0]!r} of the suite has no folder; add one with its images")
        self.folder = folder
        self.files = [(path, name) for name in names for path in class_images(folder, name)]

    def __len__(self) -> int:
        return len(self.files)

    def item(self, number: int, label_keys: Sequence[str]) -> Item:
        """Read and decode one image; its label `folder` is the name of its class folder. Raises BadSample."""
        path, name = self.files[number]
        image = read_image(self.folder, path)
        sample = printable(f"{name}/{os.path.basename(path)}")
        return Item(sample, image, (), {key: name if key == "folder" else None for key in label_keys})

    def fingerprint(self) -> str:
        """Return a hash of the files' paths below the folder, their sizes and modification times."""
        return files_hash([path for path, _ in self.files], self.folder)


@dataclass
class _Entry:
    """An image of a table: its path as written and from here, the captions of all its lines, the columns of its first line."""

    written: str
    path: str
    captions: list[str]
    columns: dict[str, str]


class TableSource:
    """A Source of the images in a table: one item per path, in the order of the first lines of the paths.

    Raises UserError for a line whose image does not exist, and for an empty caption if a task needs captions.
    """

    def __init__(self, config: DatasetConfig, table: str) -> None:
        self.table = table
        self.folder = os.path.dirname(os.path.expanduser(table))
        entries: dict[str, _Entry] = {}  # by normalised path, because `a.jpg` and `./a.jpg` are one image
        for line, row in _rows(table, [config.image_column, *([config.caption_column] if config.has_captions else [])]):
            written, caption = row[config.image_column].strip(), row.get(config.caption_column, "").strip()
            where = f"{table}: line {line}"
            path = beside(os.path.expanduser(written), os.path.expanduser(table)) if written else ""
            if not written or not os.path.isfile(path):
                wrong = f"there is no file {written!r}" if written else f"{config.image_column!r} is empty"
                raise UserError(f"{where}: a caption without an image: {wrong}; correct or remove the line")
            if config.has_captions and not caption:
                raise UserError(f"{where}: {config.caption_column!r} is empty; remove the line or give a caption")
            entries.setdefault(os.path.normpath(path), _Entry(written, path, [], row)).captions.append(caption)
        self.entries = list(entries.values())

    def __len__(self) -> int:
        return len(self.entries)

    def item(self, number: int, label_keys: Sequence[str]) -> Item:
        """Read and decode one image, with its captions; each label is the cell of the column of that name. Raises BadSample."""
        entry = self.entries[number]
        image = read_image(self.table, entry.path)
        labels: dict[str, Label] = {key: text_label(entry.columns.get(key, "")) for key in label_keys}
        return Item(entry.written, image, tuple(entry.captions), labels)

    def fingerprint(self) -> str:
        """Return a hash of the table's cells and of the files' paths, sizes and modification times."""
        rows = json.dumps([[entry.written, entry.captions, entry.columns] for entry in self.entries])
        return hashlib.sha256((rows + files_hash([entry.path for entry in self.entries], self.folder)).encode()).hexdigest()


def files_hash(paths: Sequence[str], folder: str) -> str:
    """Return a hash of the files' paths below the folder, their sizes and modification times.

    The contents are not read, because this would cost as much as the pass over the images that a hash is meant to save.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            stat = os.stat(path)
            digest.update(os.fsencode(f"{os.path.relpath(path, folder or os.curdir)} {stat.st_size} {stat.st_mtime_ns}\n"))
        except OSError:  # the file was removed in the meantime and will be reported as a bad sample
            digest.update(os.fsencode(f"{path} is gone\n"))
    return digest.hexdigest()


def read_image(source: str, path: str) -> Image:
    """Read an image file and decode it: RGB, upright. Raises BadSample with `source` and `path` in its message."""
    try:
        return decode_image(read_whole(path, _LARGEST))
    except ImageError as error:
        raise BadSample(printable(source), printable(path), f"image cannot be decoded: {error}") from None
    except OSError as error:
        raise BadSample(printable(source), printable(path), printable(f"cannot be read: {error}")) from None


def _rows(table: str, wanted: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (number of its first line, {column: cell}) for each row of a table with a heading. Blank lines are left out.

    wanted: the columns that the table must have. Cells are separated by tabs if the heading then has the first of these columns,
    else by commas. A row may have fewer cells than the heading; the missing ones are empty. It may not have more, because the
    text after an unquoted comma or tab would be lost or get into another column. Raises UserError.
    """
    text = require_text(table)
    try:
        tabs = next(_records(table, text, "\t"), (1, []))[1]
    except UserError:  # a heading with quoted cells and commas is not valid with tabs
        tabs = []
    by_tabs = wanted[0] in tabs
    records = _records(table, text, "\t" if by_tabs else ",")
    heading = next(records, (1, []))[1]
    if not heading:
        raise UserError(f"{table}: is empty; its first line names the columns")
    if missing := [name for name in wanted if name not in heading]:
        known = max(tabs, heading, key=len)
        raise UserError(f"{table}: no column {missing[0]!r}; it has {', '.join(known)}: name image_column and caption_column")
    if twice := repeated(filter(None, heading)):
        raise UserError(f"{table}: its heading has two columns {twice[0]!r}; rename or remove one")
    for line, cells in records:
        if len(cells) > len(heading):
            what = "a tab" if by_tabs else "a comma"
            raise UserError(
                f"{table}: line {line}: {len(cells)} cells under a heading of {len(heading)}; a cell with {what} needs quotes"
            )
        yield line, dict(zip_longest(heading, cells, fillvalue=""))


def _records(table: str, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of its first line, its cells) for each row that is not blank. A quoted cell may span several lines."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{table}: line {line}: not CSV: {error}") from None
