"""Tables as sources of `flexiclip data pack`: CSV and TSV files, Parquet files, and folders that Hugging Face `datasets` saved.

    table.csv, table.tsv                 paths of images and captions, as open_clip reads them
    table.parquet, a folder of them      paths, or the images themselves (also {bytes, path}, as `datasets` writes them)
    a folder of save_to_disk             data-00000-of-00001.arrow and state.json; of several splits, one is chosen

The columns of images and captions are guessed from their types and names unless they are given, and what was guessed is said.
All other columns become fields of the sample's JSON. A list of captions is written to `json:captions`.
"""

from __future__ import annotations

import csv
import json
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, BinaryIO

from flexiclip.data.pack_rows import BadRow, EmptyCaptionError, Row, text_members
from flexiclip.errors import UserError
from flexiclip.files import sha256_of
from flexiclip.libraries import library_errors, require

_IMAGES = ("filepath", "image_path", "image", "file_name", "filename", "path", "file", "img", "jpg", "png", "webp")
_CAPTIONS = ("title", "caption", "captions", "text", "texts", "txt", "description")
_LONGEST_CELL = 2**24  # characters
_TRIED = 100  # rows of a table whose paths are looked up to learn to what they are relative
_BATCH = 64  # rows of a table that are in memory at a time


@dataclass(frozen=True)
class TableOptions:
    """How a table is read. `image`, `caption`: names of columns; None guesses, and a caption of "" reads no captions.

    `root`: the folder to which paths are relative; None tries the folder of the table, then the working folder.
    `split`: which split of a data set of several.
    """

    image: str | None = None
    caption: str | None = None
    root: str | None = None
    split: str | None = None


@dataclass
class Columns:
    """The columns of a table that hold the images and the captions, and what the others hold."""

    image: str
    caption: str | None
    names: Sequence[str]
    left_out: set[str] = field(default_factory=set)  # columns of bytes, which JSON does not have
    labels: dict[str, list[str]] = field(default_factory=dict)  # column -> names of its classes

    def fields(self, row: dict[str, Any]) -> dict[str, object]:
        """Return the row without its image, its caption and its bytes, with names of classes in place of their numbers."""
        found: dict[str, object] = {}
        for name, value in row.items():
            if name == self.image:
                found |= {name: value} if isinstance(value, str) else {}
            elif name in self.labels and isinstance(value, int) and 0 <= value < len(self.labels[name]):
                found[name] = self.labels[name][value]
            elif name != self.caption and name not in self.left_out:
                found[name] = value
        return found


def choose_columns(where: str, names: Sequence[str], options: TableOptions, images: Sequence[str] = ()) -> Columns:
    """Return the columns of a table. `images`: those whose type shows that they hold images. Raises UserError."""
    lower = {name.lower(): name for name in reversed(names)}

    def choose(given: str | None, guesses: Sequence[str], option: str, what: str) -> str:
        if given is not None and given not in names:
            raise UserError(f"{where}: no column {given!r}; it has {', '.join(names)}: correct {option}")
        found = given or next((lower[guess] for guess in guesses if guess in lower), None)
        if found is None:
            raise UserError(f"{where}: no column is known to hold {what}; it has {', '.join(names)}: name one by {option}")
        return found

    image = options.image or next(iter(images), None)
    image = choose(image, _IMAGES, "--image-column", "images")
    guesses = [guess for guess in _CAPTIONS if lower.get(guess) != image]
    fix = "--caption-column, or give --no-captions"
    return Columns(image, None if options.caption == "" else choose(options.caption, guesses, fix, "captions"), names)


def _said(columns: Columns) -> str:
    caption = "no captions" if columns.caption is None else f"captions from column {columns.caption!r}"
    return f"images from column {columns.image!r}, {caption}"


class _Paths:
    """Finds the folder to which the paths of a table are relative."""

    def __init__(self, table: str, options: TableOptions) -> None:
        self.beside = os.path.dirname(table)
        self.root = options.root

    def settle(self, paths: Sequence[str]) -> list[str]:
        """Choose the folder by the first paths of the table, and return what to say about it. Raises UserError for addresses."""
        for path in paths[:1]:
            if path.startswith(("http://", "https://")):
                raise UserError(
                    f"{path}: the table holds addresses: fetch them with img2dataset, and pack the folder that it writes"
                )
        if self.root is not None:
            return []
        self.root = self.beside
        relative = [path for path in paths if not os.path.isabs(path)]
        if any(os.path.isfile(os.path.join(self.beside, path)) for path in relative):
            return []
        if any(os.path.isfile(path) for path in relative):
            self.root = ""
            return [f"paths are relative to the working folder {os.getcwd()}: no such files lie beside the table"]
        return []

    def full(self, path: str) -> str:
        """Return the path from here."""
        return os.path.join(self.root or "", os.path.expanduser(path))


def _row(where: str, values: dict[str, Any], columns: Columns, paths: _Paths, several: bool) -> Row | BadRow:
    """Make a Row of the values of a table's row."""
    image = values[columns.image]
    if isinstance(image, dict):  # as `datasets` writes images
        image = image.get("bytes") or image.get("path")
    if not image:
        return BadRow(where, f"no image: {columns.image} is empty")
    where = image if isinstance(image, str) else where
    if not isinstance(image, (str, bytes)):
        return BadRow(where, f"no image: {columns.image} holds a {type(image).__name__}")
    captions: list[str] = []
    if columns.caption is not None:
        found = values[columns.caption]
        captions = [str(text) for text in (found if isinstance(found, list) else [found]) if text is not None] or [""]
    try:
        members = text_members(captions, columns.fields(values), several)
    except (EmptyCaptionError, UnicodeError) as error:
        return BadRow(where, str(error) if isinstance(error, EmptyCaptionError) else "caption is not UTF-8")
    return Row(where, paths.full(image) if isinstance(image, str) else image, members)


class _Lines:
    """The lines of a CSV file as text, and the offset of the next one. Bytes that are not UTF-8 become surrogates."""

    def __init__(self, file: BinaryIO, offset: int = 0) -> None:
        self._file, self.offset = file, offset
        file.seek(offset)

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            start, self.offset = self.offset, self.offset + len(line)
            text = line.decode("utf-8", "surrogateescape")
            yield text.removeprefix("\ufeff") if start == 0 else text


class CsvSource:
    """The rows of a CSV or TSV file with a heading. Blank lines are no rows.

    The first pass notes where each row begins, so that every process reads only its own part.
    """

    labels = ""
    classes: tuple[str, ...] = ()

    def __init__(self, table: str, options: TableOptions) -> None:
        """Raises UserError if the file cannot be read, a column is missing, or it has no row."""
        self.table = table
        csv.field_size_limit(_LONGEST_CELL)
        self.starts = array("Q")
        with library_errors(f"{table}: cannot be read"), open(table, "rb") as file:
            self.separator = _separator(table, file.readline())
            lines = _Lines(file)
            reader = csv.reader(lines, delimiter=self.separator)
            names = [name.strip() for name in next(reader, [])]
            begin = lines.offset
            for cells in reader:
                if cells:
                    self.starts.append(begin)
                begin = lines.offset
        if not self.starts:
            raise UserError(f"{table}: no rows below a heading")
        twice = next((name for name, count in Counter(names).items() if count > 1), None)
        if twice is not None:
            raise UserError(f"{table}: the heading {twice!r} is given twice; rename one")
        self.columns = choose_columns(table, names, options)
        self.captions = "" if self.columns.caption is None else "txt"
        self.paths = _Paths(table, options)
        tried = (dict(zip(names, cells, strict=False)) for _, cells in islice(self._cells(0), _TRIED))
        self.notes = [_said(self.columns), *self.paths.settle([row.get(self.columns.image, "").strip() for row in tried])]
        self.identity: dict[str, object] = {"kind": "table", "sha256": sha256_of(table), "columns": _said(self.columns)}
        self.damage: list[BadRow] = []

    def __len__(self) -> int:
        return len(self.starts)

    def _cells(self, start: int) -> Iterator[tuple[int, list[str]]]:
        """Yield (row, its cells) from row `start` on."""
        csv.field_size_limit(_LONGEST_CELL)
        with open(self.table, "rb") as file:
            reader = csv.reader(_Lines(file, self.starts[start]), delimiter=self.separator)
            yield from enumerate(filter(None, reader), start)

    def rows(self, start: int, stop: int) -> Iterator[Row | BadRow]:
        """Yield rows; see Source."""
        names, width = self.columns.names, len(self.columns.names)
        for number, cells in islice(self._cells(start), stop - start):
            where = f"row {number}"
            if len(cells) != width:
                yield BadRow(where, f"{len(cells)} cells for {width} columns")
                continue
            values: dict[str, Any] = dict(zip(names, cells, strict=True))
            values[self.columns.image] = values[self.columns.image].strip()
            yield _row(where, values, self.columns, self.paths, several=False)


def _separator(table: str, heading: bytes) -> str:
    """Return the character that separates columns: a tab in .tsv, else the most frequent of three in the heading."""
    if table.lower().endswith((".tsv", ".tab")):
        return "\t"
    return max(",\t;", key=lambda mark: heading.count(mark.encode()))


class ArrowSource:
    """The rows of Parquet files or Arrow files with the same columns, in the order of the files. It needs pyarrow."""

    def __init__(self, where: str, files: Sequence[str], options: TableOptions) -> None:
        """`where`: the file or folder, for messages. Raises UserError."""
        _pyarrow()
        self.files = [_ArrowFile(path) for path in files]
        schema = self.files[0].schema()
        for file in self.files:
            if file.schema().names != schema.names:
                raise UserError(f"{file.path}: its columns differ from those of {files[0]}: pack the two separately")
        features = _features(schema.metadata)
        self.columns = choose_columns(where, schema.names, options, _image_columns(schema, features))
        self.columns.left_out = {each.name for each in schema if _holds_bytes(each.type)}
        self.columns.labels = {name: names for name, about in features.items() if (names := _class_names(about))}
        one = list(self.columns.labels.items()) if len(self.columns.labels) == 1 else []
        self.labels = f"json:{one[0][0]}" if one else ""
        self.classes = tuple(one[0][1]) if one else ()
        caption = self.columns.caption
        self.several = caption is not None and "list" in str(schema.field(caption).type)
        self.captions = "" if caption is None else "json:captions" if self.several else "txt"
        self.paths = _Paths(files[0], options)
        left = sorted(self.columns.left_out - {self.columns.image})
        self.wanted = [name for name in schema.names if name not in left]
        self.notes = [_said(self.columns), *([f"columns of bytes are left out: {', '.join(left)}"] if left else [])]
        tried = (values.get(self.columns.image) for _, values in islice(self.files[0].rows(0, _TRIED, self.wanted), _TRIED))
        self.notes += self.paths.settle([path for path in tried if isinstance(path, str)])
        sizes = [[os.path.basename(file.path), file.count, os.path.getsize(file.path)] for file in self.files]
        self.identity: dict[str, object] = {"kind": "table", "files": sizes, "columns": _said(self.columns)}
        self.damage: list[BadRow] = []
        if not len(self):
            raise UserError(f"{where}: no rows")

    def __len__(self) -> int:
        return sum(file.count for file in self.files)

    def rows(self, start: int, stop: int) -> Iterator[Row | BadRow]:
        """Yield rows; see Source."""
        first = 0
        for file in self.files:
            if start < first + file.count and first < stop:
                for number, values in file.rows(max(start - first, 0), min(stop - first, file.count), self.wanted):
                    where = f"{os.path.basename(file.path)}: row {number}"
                    yield _row(where, values, self.columns, self.paths, self.several)
            first += file.count


class _ArrowFile:
    """A Parquet file, or an Arrow file in either of its two layouts, and its number of rows."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.is_parquet = path.lower().endswith(".parquet")
        with library_errors(f"{path}: cannot be read"):
            self.groups = self._row_groups() if self.is_parquet else []
            self.count = sum(self.groups) if self.is_parquet else self._table().num_rows

    def schema(self) -> Any:
        """Return the schema of pyarrow, with the metadata that `datasets` writes."""
        return self._parquet().schema_arrow if self.is_parquet else self._table().schema

    def rows(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (row, {column: value}) of the rows start..stop-1. A few rows are in memory at a time."""
        stop = min(stop, self.count)
        for first, batch in self._batches(start, stop, columns):
            low, high = max(start - first, 0), min(stop - first, batch.num_rows)
            yield from enumerate(batch.slice(low, high - low).to_pylist(), first + low)

    def _batches(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
        """Yield (its first row, batch) for batches that together hold the rows."""
        if not self.is_parquet:
            table = self._table().select(columns)
            for first in range(start, stop, _BATCH):
                yield first, table.slice(first, _BATCH)
            return
        parquet, first = self._parquet(), 0
        for group, rows in enumerate(self.groups):
            if start < first + rows and first < stop:
                row = first
                for batch in parquet.iter_batches(_BATCH, row_groups=[group], columns=columns):
                    if row + batch.num_rows > start:
                        yield row, batch
                    row += batch.num_rows
                    if row >= stop:
                        break
            first += rows

    def _row_groups(self) -> list[int]:
        metadata = self._parquet().metadata
        return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]

    def _parquet(self) -> Any:
        import pyarrow.parquet

        return pyarrow.parquet.ParquetFile(self.path, memory_map=True)

    def _table(self) -> Any:
        """Return the table of an Arrow file, whose rows stay on the disk until they are read."""
        import pyarrow

        mapped = pyarrow.memory_map(self.path)
        try:
            return pyarrow.ipc.open_stream(mapped).read_all()
        except pyarrow.ArrowInvalid:
            return pyarrow.ipc.open_file(mapped).read_all()


def _pyarrow() -> Any:
    return require("pyarrow", "flexiclip[pack]", "reading Parquet and Arrow files")


def _features(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """Return what `datasets` wrote about the columns: {column: {"_type": "Image"}}; {} if another program wrote the file."""
    try:
        about = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return about if isinstance(about, dict) else {}


def _class_names(about: object) -> list[str]:
    names = about.get("names") if isinstance(about, dict) and about.get("_type") == "ClassLabel" else None
    return [str(name) for name in names] if isinstance(names, list) else []


def _holds_bytes(kind: Any) -> bool:
    return "binary" in str(kind)


def _image_columns(schema: Any, features: dict[str, Any]) -> list[str]:
    """Return the columns that hold images by their type: those that `datasets` calls so, then those of bytes."""
    said = [name for name, about in features.items() if isinstance(about, dict) and about.get("_type") == "Image"]
    return [*said, *(each.name for each in schema if _holds_bytes(each.type) and each.name not in said)]
