"""Finds out what `flexiclip data pack SOURCE` was given: a table, shards, a saved data set, or a folder of images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from flexiclip.data.pack_rows import FolderSource, ShardSource, Source, require_templates
from flexiclip.data.pack_tables import ArrowSource, CsvSource, TableOptions
from flexiclip.errors import UserError, listed
from flexiclip.files import read_json

_CSV = (".csv", ".tsv", ".tab")
_PART = re.compile(r"(.+?)-\d+-of-\d+\b.*")  # as `datasets` names the files of a split: train-00000-of-00004.parquet
KINDS = "a .csv, .tsv, .parquet, .arrow or .tar file, or a folder of images, shards, Parquet files or a saved data set"


def open_source(path: str, table: TableOptions | None = None, templates: Sequence[str] = ()) -> Source:
    """Return the rows of a file or folder. Raises UserError if it is of no known kind or an option does not belong to its kind.

    `templates`: captions of a folder of images, with {c} for the class.
    """
    table = TableOptions() if table is None else table
    require_templates(templates)
    place = Path(path)
    if not place.exists():
        raise UserError(f"{path}: no such file or folder; give {KINDS}")
    source = _folder(path, table, templates) if place.is_dir() else _file(path, table)
    if templates and not isinstance(source, FolderSource):
        raise UserError(f"--template makes captions from the class folders of images; {path} has captions of its own")
    if isinstance(source, (FolderSource, ShardSource)) and (table.image or table.caption or table.root):
        raise UserError(f"{path}: --image-column, --caption-column and --root are for tables; this is a folder of files")
    return source


def _file(path: str, table: TableOptions) -> Source:
    kind = Path(path).suffix.lower()
    if kind in _CSV:
        return CsvSource(path, table)
    if kind in (".parquet", ".arrow"):
        return ArrowSource(path, [path], table)
    if kind == ".tar":
        return ShardSource([path])
    raise UserError(f"{path}: not a kind of file that can be packed; give {KINDS}")


def _folder(path: str, table: TableOptions, templates: Sequence[str]) -> Source:
    place = Path(path)
    if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
        return ArrowSource(path, _saved(place, table.split), table)
    shards = sorted(str(file) for file in place.glob("*.tar"))
    if shards:
        return ShardSource(shards)
    tables = sorted(place.rglob("*.parquet")) or sorted(place.rglob("*.arrow"))
    if tables and not any(place.glob("*_stats.json")):  # img2dataset's folders of images have tables without images beside them
        return ArrowSource(path, _of_split(place, tables, table.split), table)
    return FolderSource(path, templates)


def _saved(folder: Path, split: str | None) -> list[str]:
    """Return the Arrow files of a data set that `datasets` saved by save_to_disk."""
    if (folder / "dataset_dict.json").is_file():
        splits = read_json(folder / "dataset_dict.json").get("splits")
        names = [str(name) for name in splits] if isinstance(splits, list) else []
        folder = folder / _one(names, split, str(folder))
    state = read_json(folder / "state.json")
    files = state.get("_data_files")
    if state.get("_indices_data_files") or not isinstance(files, list):
        raise UserError(f"{folder}: saved by an old version of `datasets`: load it there, and save it again")
    names = [str(file.get("filename")) for file in files if isinstance(file, dict)]
    if not names or any(Path(name).name != name for name in names):
        raise UserError(f"{folder / 'state.json'}: names no files of this folder")
    return [str(folder / name) for name in names]


def _of_split(folder: Path, tables: Sequence[Path], split: str | None) -> list[str]:
    """Return the tables of one split; all of them if their names tell no splits."""
    splits: dict[str, list[str]] = {}
    for path in tables:
        inside = path.relative_to(folder)
        found = _PART.fullmatch(inside.name)
        name = found[1] if found else inside.parts[0] if len(inside.parts) > 1 and inside.parts[0] != "data" else ""
        splits.setdefault(name, []).append(str(path))
    if len(splits) == 1 and split is None:
        return next(iter(splits.values()))
    return splits[_one(list(splits), split, str(folder))]


def _one(names: Sequence[str], split: str | None, where: str) -> str:
    """Return the split to take. Raises UserError if there are several and none is chosen, or the chosen one is missing."""
    if split is None and len(names) == 1:
        return names[0]
    if split in names:
        return str(split)
    wrong = "several splits" if split is None else f"no split {split!r}"
    raise UserError(f"{where}: {wrong}: choose one by --split; it has {listed(filter(None, names), len(names))}")
