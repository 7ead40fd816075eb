"""Makes a suite of a folder of images or a table, so that `--suite` takes them without a YAML file.

    flexiclip eval MODEL --suite photos                 photos/CLASS/*.jpg, or photos/test/CLASS/*.jpg
    flexiclip eval MODEL --suite captions.csv           the columns are guessed from their names

A folder is scored by classification, with the names of its class folders as classes, and by retrieval if there is a table of
captions in it. A table is scored by retrieval, by classification, or by both, according to its columns. What was guessed is
logged in one line, because a guess may be wrong; a YAML file then says it explicitly.
"""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from flexiclip_eval.suites.dataset import DatasetConfig, default_name
from flexiclip_eval.suites.layout import SUFFIXES, printable, require_text
from flexiclip_eval.suites.task import TaskConfig

from flexiclip.distributed import rank
from flexiclip.errors import UserError

log = logging.getLogger("flexiclip.eval")

TABLES = (".csv", ".tsv")
IMAGE_COLUMNS = (
    "filepath", "file_path", "image_path", "img_path", "image", "path", "file_name", "filename", "file", "img", "photo",
)  # fmt: skip
CAPTION_COLUMNS = ("title", "caption", "captions", "text", "description", "sentence", "alt_text", "alt", "prompt")
LABEL_COLUMNS = ("label", "class", "category", "class_name", "classname", "target")
SPLITS = ("test", "testing", "val", "valid", "validation", "dev", "train", "training")
"""The names of split folders; the first one that a folder has is scored."""
_LAYOUT = ("classnames.txt", "dataset_type.txt")  # files of CLIP_benchmark's layout


def is_table(place: str) -> bool:
    """Return whether a suite is a table, by the ending of its name."""
    return place.lower().endswith(TABLES)


def table_suite(table: str) -> list[DatasetConfig]:
    """Return the data set of a table. Raises UserError if no column has the images, or none has captions or classes."""
    heading, first = _head(table)
    images = _column(heading, IMAGE_COLUMNS) or _column_of_files(table, heading, first)
    if images is None:
        raise UserError(
            f"{table}: no column has the paths of images; it has {', '.join(heading)}: rename one to filepath, or write a suite "
            "with image_column"
        )
    rest = [name for name in heading if name != images]
    captions, label = _column(rest, CAPTION_COLUMNS), _column(rest, LABEL_COLUMNS)
    if captions is None and label is None and len(rest) == 1:
        captions = rest[0]
    if captions is None and label is None:
        raise UserError(
            f"{table}: no column has captions or classes; it has {', '.join(heading)}: rename one to title or label, or write a "
            "suite with caption_column"
        )
    tasks = [*([TaskConfig("retrieval")] if captions else []), *([TaskConfig("classification", label=label)] if label else [])]
    said = [f"captions from {captions!r}" if captions else "", f"classes from {label!r}" if label else ""]
    _say(table, f"images from the column {images!r}, {', '.join(filter(None, said))}")
    return [DatasetConfig(csv=table, tasks=tuple(tasks), image_column=images, caption_column=captions or "title")]


def folder_suite(folder: str) -> list[DatasetConfig] | None:
    """Return the data sets of a folder of images; None if it has none, or is in CLIP_benchmark's layout.

    Raises UserError for a folder that has images, but neither class folders nor a table of captions.
    """
    root = Path(folder)
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if any((root / name).is_file() for name in _LAYOUT) or any((root / name / "nshards.txt").is_file() for name in names):
        return None
    splits = [split for split in SPLITS if split in names and _class_folders(root / split)]
    scored = root / splits[0] if splits else root
    classes = _class_folders(scored)
    tables = [file for place in dict.fromkeys((scored, root)) for file in sorted(place.iterdir()) if is_table(file.name)]
    if not classes and not tables:
        if not any(file.name.lower().endswith(SUFFIXES) for file in root.iterdir()):
            return None
        raise UserError(
            f"{folder}: has images, but neither class folders (CLASS/*.jpg) nor a table of captions (captions.csv with the "
            "columns filepath and title)"
        )
    name = printable(default_name(folder))
    datasets = []
    if classes:
        listed = ", ".join(classes[:3]) + ", ..." * (len(classes) > 3)
        where = f"the split {splits[0]}, " if splits else ""
        _say(folder, f"{where}{len(classes)} classes from the names of the folders ({listed})")
        datasets.append(DatasetConfig(name, images=str(scored), train=str(root / "train") if "train" in splits[1:] else None))
    for table in tables:
        found = _captions(str(table), bool(classes))
        if found is not None:
            datasets.append(replace(found, name=f"{name}-{printable(table.stem)}" if classes else name))
    return datasets


def _captions(table: str, classes: bool) -> DatasetConfig | None:
    """Return the data set of a table in a folder. Next to class folders only its captions count: None if it has none."""
    if not classes:
        return table_suite(table)[0]
    try:
        found = table_suite(table)[0]
    except UserError as error:
        _say(table, f"is left out: {error}")
        return None
    retrieval = tuple(task for task in found.tasks if task.reads_captions)
    return replace(found, tasks=retrieval) if retrieval else None


def _class_folders(folder: Path) -> list[str]:
    """Return the sorted names of the folders that have an image in them, directly or below."""
    return sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".") and entry.name != "__MACOSX" and _has_image(entry)
    )


def _has_image(folder: Path) -> bool:
    return any(name.lower().endswith(SUFFIXES) for _, _, names in os.walk(folder) for name in names if not name.startswith("."))


def _column(heading: Sequence[str], known: Sequence[str]) -> str | None:
    """Return the column whose name comes first in `known`; capitals, spaces and hyphens do not matter."""
    plain = {name.strip().lower().replace(" ", "_").replace("-", "_"): name for name in reversed(heading)}
    return next((plain[name] for name in known if name in plain), None)


def _column_of_files(table: str, heading: Sequence[str], first: Sequence[str]) -> str | None:
    """Return the first column whose first cell is the path of an image file that exists."""
    folder = os.path.dirname(os.path.expanduser(table))
    for name, cell in zip(heading, first, strict=False):
        if cell.lower().endswith(SUFFIXES) and os.path.isfile(os.path.join(folder, cell)):
            return name
    return None


def _head(table: str) -> tuple[list[str], list[str]]:
    """Return the heading and the first row of a table, whose cells are separated by tabs if the heading has one. UserError."""
    text = require_text(table)
    line = text.partition("\n")[0]
    delimiter = "\t" if "\t" in line else ","
    try:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        heading = next(rows, [])
        return heading, next(rows, [])
    except csv.Error as error:
        raise UserError(f"{table}: not CSV: {error}") from None


def _say(place: str, text: str) -> None:
    if rank() == 0:
        log.warning("%s: %s", printable(place), printable(text))
