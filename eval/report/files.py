"""Writes the files of an evaluation, and reads its rows again. The folder OUTPUT of `flexiclip eval` gets these files:

    OUTPUT/results.json   a list of rows (rows.py)
    OUTPUT/results.csv    the same rows with one column per metric
    OUTPUT/rows/*.json    one file per row, for `clip_benchmark build OUTPUT/rows`
    OUTPUT/report.json    command, models, tasks, choices, cascades, fronts of length and width, bad samples
    OUTPUT/details.json   one object per row: the recall of each class, and the images that sampled captions found
    OUTPUT/*.png          plots of each task against tokens and GFLOPs
    OUTPUT/report.html    all of it on one page that loads nothing
    OUTPUT/results.md     the tables, with --table markdown; results.tex with --table latex

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
from flexiclip_eval.report.table import ModelInfo, Report, label_of, of_task, runs_of, task_table
from flexiclip_eval.rows import Details, Row, TaskInfo, primary_metric
from flexiclip_eval.suites.layout import printable
from flexiclip_eval.tradeoffs import CascadeCurve, CascadePoint

from flexiclip import files
from flexiclip.errors import UserError
from flexiclip.text_tables import TextTable, latex, markdown

T = TypeVar("T", Row, ModelInfo, TaskInfo, CascadeCurve, CascadePoint)


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
        own = {key: value for key, value in data.items() if key not in ("standard_errors", "label")}  # clip_benchmark has no such
        write_whole(rows_folder / name, json.dumps(own, ensure_ascii=False))
    write_csv(report.rows, output / "results.csv")
    about = dataclasses.asdict(dataclasses.replace(report, rows=[], details=[], hits=[]))
    del about["rows"], about["details"], about["hits"]
    write_whole(output / "report.json", json.dumps(about, indent=2, ensure_ascii=False))
    write_whole(output / "details.json", json.dumps(report.details, ensure_ascii=False))
    pictures = {(task.dataset, task.task): _pictures(report, task, output) for task in report.tasks}
    write_whole(output / "report.html", render_page(report, pictures, gallery))


def check_output(output: Path | None, tables: Sequence[str]) -> None:
    """Check that the folder of a report and the files of its tables can be written. Raises UserError that names the option."""
    if output is not None:
        for folder in (output, output / "rows"):
            check_folder(folder, f"--output {output}")
    for file in table_files(tables, output):
        check_folder(file.parent, f"--table {file}")


def write_results(report: Report, output: Path | None, gallery: Gallery | None, tables: Sequence[str]) -> list[str]:
    """Write the report and the tables; return lines that say what was left where, with the page last. Raises UserError."""
    if output is not None:
        write_report(report, output, gallery)
    lines = []
    for file in table_files(tables, output):
        texts = [render_table(task_table(report, task), file.suffix, len(report.models) > 1) for task in report.tasks]
        write_whole(file, "\n\n".join(texts))
        lines.append(f"tables: {file}")
    if output is None:
        return [*lines, "No results were kept: --output DIR keeps them, with plots and a page to look at."]
    return [*lines, f"rows: {output / 'results.csv'}, {output / 'results.json'}", f"report: {output / 'report.html'}"]


TABLES = {"markdown": ".md", "latex": ".tex"}
"""The names of --table and their endings."""


def table_files(tables: Sequence[str], output: Path | None) -> list[Path]:
    """Return the files that --table names: `markdown` and `latex` are results.md and results.tex in the output folder.

    Raises UserError for another ending, and for `markdown` and `latex` without an output folder.
    """
    files = []
    for table in tables:
        if table in TABLES and output is None:
            raise UserError(f"--table {table}: give a file such as results{TABLES[table]}, or --output DIR for the folder")
        file = output / f"results{TABLES[table]}" if table in TABLES and output is not None else Path(table)
        if file.suffix not in TABLES.values():
            raise UserError(f"--table {table}: give markdown, latex, or a file that ends in .md or .tex")
        files.append(file)
    return files


def render_table(table: TextTable, suffix: str, several: bool) -> str:
    """Return a table as Markdown (.md), where the best of a column is bold, or as LaTeX (.tex).

    several: whether the first column names the models.
    """
    if suffix == ".tex":
        return "\n".join(latex(table, int(several)))
    bold = [
        [f"**{cell}**" if (number, column) in table.best else cell for column, cell in enumerate(row)]
        for number, row in enumerate(table.rows)
    ]
    return "\n".join([table.title, "", *markdown(table.head, bold, int(several))])


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
    """Write rows as a CSV file: first the top-level keys, then one column per metric, then those of the standard errors.

    A cell without a value is empty.
    """
    keys = dict.fromkeys(key for row in rows for key in as_json(row) if key not in ("metrics", "standard_errors"))
    names = dict.fromkeys(name for row in rows for name in row.metrics)
    errors = dict.fromkeys(f"{name}_standard_error" for row in rows for name in row.standard_errors or ())
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, [*keys, *names, *errors], extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        uncertain = {f"{name}_standard_error": value for name, value in (row.standard_errors or {}).items()}
        writer.writerow({**as_json(row), **row.metrics, **uncertain})
    write_whole(path, printable(file.getvalue()).encode())


def as_json(row: Row) -> dict[str, object]:
    """Return a row as plain data. Its metrics must be finite, because JSON has no other numbers."""
    data = dataclasses.asdict(row)
    for key in ("width", "standard_errors", "label"):
        if data[key] is None:
            del data[key]
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


def read_report(path: Path) -> Report:
    """Read a results.json, given as a file or as its folder, with the report.json and details.json next to it. Raises UserError.

    Without these, the models and tasks are those of the rows, and chance and the training lengths are not known.
    """
    rows = read_rows(path)
    folder = path if path.is_dir() else path.parent
    about, details = _read_json(folder / "report.json"), _read_json(folder / "details.json")
    try:
        models = [_model(model) for model in about.get("models", ())] if isinstance(about, dict) else []
        tasks = [_task(task) for task in about.get("tasks", ())] if isinstance(about, dict) else []
        cascades = [_cascade(curve) for curve in about.get("cascades", ())] if isinstance(about, dict) else []
        bad = list(about.get("bad_samples", ())) if isinstance(about, dict) else []
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / 'report.json'}: not a report.json of `flexiclip eval`: {error!r}") from None
    for row in rows:
        if label_of(row) not in map(label_of, models):
            models.append(ModelInfo(row.model, row.pretrained, width=row.width, label=row.label))
        if not any((task.dataset, task.task) == (row.dataset, row.task) for task in tasks):
            tasks.append(TaskInfo(row.dataset, row.task, {}))
    fitting = isinstance(details, list) and len(details) == len(rows)
    given: list[Details] = list(details) if fitting and isinstance(details, list) else [Details() for _ in rows]
    return Report("", rows, models, tasks, bad, given, [None] * len(rows), cascades=cascades)


def _read_json(file: Path) -> object:
    """Return the JSON value in a file, or None if there is no file. Raises UserError."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None


def _model(data: Mapping[str, Any]) -> ModelInfo:
    return _from_json(ModelInfo, {**data, "trained_seqhw": tuple(data.get("trained_seqhw", ()))})


def _task(data: Mapping[str, Any]) -> TaskInfo:
    return _from_json(TaskInfo, {**data, "classes": tuple(data.get("classes", ()))})


def _cascade(data: Mapping[str, Any]) -> CascadeCurve:
    return _from_json(CascadeCurve, {**data, "points": tuple(_from_json(CascadePoint, point) for point in data["points"])})


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
