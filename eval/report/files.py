"""Writes the files of an evaluation, and reads its rows again. The folder OUTPUT of `flexiclip eval` gets these files:

    OUTPUT/results.json   a list of rows (rows.py)
    OUTPUT/results.csv    the same rows with one column per metric
    OUTPUT/rows/*.json    one file per row, for `clip_benchmark build OUTPUT/rows`
    OUTPUT/report.json    command, models, tasks, choices, cascades, fronts of length and width, bad samples
    OUTPUT/details.json   one object per row: the recall of each class, and the images that sampled captions found
    OUTPUT/*.png          plots of each task against tokens and GFLOPs
    OUTPUT/report.html    all of it on one page that loads nothing

A file is written whole or not at all.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from flexiclip_eval.report.drawing import drawn
from flexiclip_eval.report.page import render_page
from flexiclip_eval.report.page_data import Gallery
from flexiclip_eval.report.plots import plot_cascades, plot_front, plot_task
from flexiclip_eval.report.table import ModelInfo, Report, label_of, of_task, runs_of
from flexiclip_eval.rows import Row, TaskInfo, primary_metric
from flexiclip_eval.suites.layout import printable

from flexiclip import files
from flexiclip.errors import UserError

T = TypeVar("T", Row, ModelInfo, TaskInfo)


def write_report(report: Report, output: Path, gallery: Gallery | None = None) -> None:
    """Write all files into `output`, in place of those of an earlier evaluation. Raises UserError if they cannot be written.

    gallery: the images that the page may show.
    """
    rows_folder = output / "rows"
    for folder in (output, rows_folder):
        require_folder(folder, f"--output {output}")
    for old in rows_folder.glob("*.json"):  # clip_benchmark's table would contain rows of lengths that are no longer evaluated
        remove(old)
    rows = [as_json(row) for row in report.rows]
    write_whole(output / "results.json", json.dumps(rows, indent=2, ensure_ascii=False))
    for row, data in zip(report.rows, rows, strict=True):
        model = f"_{label_of(row)}" if len(report.models) > 1 else ""
        name = f"{_stem(row.dataset, row.task + model)}_seqhw{row.seqhw or 0:02d}.json"
        write_whole(rows_folder / name, json.dumps(data, ensure_ascii=False))
    write_csv(report.rows, output / "results.csv")
    about = dataclasses.asdict(report)
    del about["rows"], about["details"]
    write_whole(output / "report.json", json.dumps(about, indent=2, ensure_ascii=False))
    write_whole(output / "details.json", json.dumps(report.details, ensure_ascii=False))
    pictures = {(task.dataset, task.task): _pictures(report, task, output) for task in report.tasks}
    write_whole(output / "report.html", render_page(report, pictures, gallery))


def check_folder(folder: Path, option: str) -> None:
    """Check that a folder can be made and written, and remove it again if it is new. Raises UserError that names `option`."""
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        require_folder(folder, option)
    finally:
        for each in made:
            with contextlib.suppress(OSError):
                each.rmdir()


def require_folder(folder: Path, option: str) -> None:
    """Make a folder, and check that a file can be written in it, because an existing folder may be read-only.

    Raises UserError that names `option`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{printable(option)}: cannot write there: {error.strerror}") from None


def _pictures(report: Report, task: TaskInfo, output: Path) -> list[Path]:
    """Write the plots of a task and return their files: against tokens, against GFLOPs, the front, and the cascades.

    A plot is left out if no row has a place on its axis, for example if no costs are known.
    """
    runs = runs_of(report, task)
    fronts = of_task(report.fronts, task)
    cascades = {label_of(curve): curve for curve in of_task(report.cascades, task)}
    figures = {"": plot_task(runs, task), "_gflops": plot_task(runs, task, "gflops")}
    figures["_front"] = plot_front(fronts[0], runs) if fronts else None
    if cascades:
        figures["_cascade"] = plot_cascades(cascades, runs, primary_metric(runs[next(iter(cascades))][0].metrics))
    files = []
    for ending, figure in figures.items():
        file = output / f"{_stem(task.dataset, task.task)}{ending}.png"
        remove(file)
        if figure is not None:
            write_whole(file, drawn(figure))
            files.append(file)
    return files


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write rows as a CSV file: first the top-level keys, then one column per metric. A cell without a value is empty."""
    keys = dict.fromkeys(key for row in rows for key in as_json(row) if key != "metrics")
    names = dict.fromkeys(name for row in rows for name in row.metrics)
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, [*keys, *names], extrasaction="ignore")
    writer.writeheader()
    writer.writerows({**as_json(row), **row.metrics} for row in rows)
    write_whole(path, printable(file.getvalue()).encode())


def as_json(row: Row) -> dict[str, object]:
    """Return a row as plain data. Its metrics must be finite, because JSON has no other numbers."""
    data = dataclasses.asdict(row)
    if row.width is None:
        del data["width"]
    assert all(math.isfinite(value) for value in row.metrics.values()), f"metrics must be finite: {row.metrics}"
    return data


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a results.json, given as a file or as its folder. Raises UserError."""
    file = path / "results.json" if path.is_dir() else path
    try:
        return [_from_json(Row, row) for row in json.loads(file.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; give the results.json of `flexiclip eval --output`") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not a results.json of `flexiclip eval`: {error!r}") from None


def read_about(path: Path) -> tuple[list[ModelInfo], list[TaskInfo]]:
    """Read the models and the tasks in the report.json next to a results.json; none if the file is not there."""
    file = (path if path.is_dir() else path.parent) / "report.json"
    about = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    models, tasks = about.get("models", ()), about.get("tasks", ())
    return [_from_json(ModelInfo, model) for model in models], [_from_json(TaskInfo, task) for task in tasks]


def _from_json(cls: type[T], data: Mapping[str, Any]) -> T:
    """Return a dataclass from a JSON object, whose other keys are left out."""
    return cls(**{field.name: data[field.name] for field in dataclasses.fields(cls) if field.name in data})


def _stem(dataset: str, task: str) -> str:
    return re.sub(r"[^\w.-]+", "-", f"{dataset}_{task}")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file atomically, so that a reader never sees half of it. Raises UserError.

    Text is written as UTF-8 with a newline at the end.
    """
    try:
        files.write_whole(path, content if isinstance(content, bytes) else printable(content) + "\n")
    except OSError as error:
        raise UserError(f"{printable(str(path))}: cannot be written: {error.strerror}") from None


def remove(path: Path) -> None:
    """Remove a file of an earlier evaluation, if it exists. Raises UserError."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{printable(str(path))}: cannot be removed: {error.strerror}") from None
