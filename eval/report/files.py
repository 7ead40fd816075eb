"""What an evaluation leaves behind.

OUTPUT/results.json   a list of rows (table.Row)       OUTPUT/rows/*.json   one row a file: `clip_benchmark build OUTPUT/rows`
OUTPUT/results.csv    the same, a metric a column      OUTPUT/*.png         each task against the sequence length
OUTPUT/report.json    chance, bad samples, command     OUTPUT/report.html   all of it on one page that loads nothing
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flexiclip.errors import UserError

from .page import render_page
from .table import Report, Row, cells, rows_of, short_name


def write_report(report: Report, output: Path) -> None:
    """Write all the files into `output`, in place of those of an earlier evaluation."""
    from .plots import plot_task, save

    rows_folder = output / "rows"
    try:
        rows_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output}: cannot write there: {error.strerror}") from None
    for old in rows_folder.glob("*.json"):  # a row of a length no longer evaluated would live on in clip_benchmark's table
        old.unlink()
    rows = [as_json(row) for row in report.rows]
    _write(output / "results.json", json.dumps(rows, indent=2, ensure_ascii=False))
    for row, data in zip(report.rows, rows, strict=True):
        _write(
            rows_folder / f"{_stem(row.dataset, row.task)}_seqhw{row.seqhw or 0:02d}.json", json.dumps(data, ensure_ascii=False)
        )
    write_csv(report.rows, output / "results.csv")
    about = dataclasses.asdict(report)
    del about["rows"], about["details"]
    _write(output / "report.json", json.dumps(about, indent=2, ensure_ascii=False))
    pictures = {}
    for task in report.tasks:
        rows_of_task = rows_of(report, task)
        if rows_of_task[0].seqhw is not None:  # a model of one unnamed length has no curve
            figure = plot_task(rows_of_task, task)
            pictures[(task.dataset, task.task)] = save(figure, output / f"{_stem(task.dataset, task.task)}.png")
    _write(output / "report.html", render_page(report, pictures))


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """results.csv: the top-level keys, then one column a metric; empty where a row has no such value."""
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    keys = [field.name for field in dataclasses.fields(Row) if field.name != "metrics"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*keys, *names])
        writer.writeheader()
        for row in rows:
            data = as_json(row)
            writer.writerow({**{key: data[key] for key in keys}, **data["metrics"]})


def as_json(row: Row) -> dict[str, Any]:
    """A row as plain data. Numbers are finite, or JSON could not hold them."""
    data = dataclasses.asdict(row)
    assert all(math.isfinite(value) for value in row.metrics.values()), f"metrics must be finite: {row.metrics}"
    return data


def read_rows(path: Path) -> list[Row]:
    """The rows of a results.json, or of the folder that holds one. Raises UserError."""
    file = path / "results.json" if path.is_dir() else path
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        return [Row(**{field.name: row[field.name] for field in dataclasses.fields(Row)}) for row in data]
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; give the results.json of `flexiclip eval --output`") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not a results.json of `flexiclip eval`: {error!r}") from None


def read_about(path: Path) -> dict[str, Any]:
    """report.json beside a results.json: chance levels and trained lengths; {} when the rows travelled without it."""
    file = (path if path.is_dir() else path.parent) / "report.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def print_report(report: Report) -> None:
    """A table a task on the terminal, 80 columns wide: lengths down, cost and metrics across, chance as the last line."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for task in report.tasks:
        rows = rows_of(report, task)
        names = list(rows[0].metrics)
        title = f"{task.dataset} · {task.task} · {rows[0].n} images"
        table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, padding=0, show_edge=False)
        for heading in ("seqhw", "tokens", "patch", "GFLOPs", "images/s", *map(short_name, names)):
            table.add_column(heading.replace("→", "→\n").replace(" ", "\n"), justify="right", no_wrap=True, vertical="bottom")
        for row in rows:
            table.add_row(*cells(row), *(f"{row.metrics[name]:.1%}" for name in names))
        table.add_section()
        table.add_row("chance", "", "", "", "", *(f"{task.chance[name]:.1%}" for name in names), style="dim")
        console.print(table, "")
    if report.bad_samples:
        console.print(f"[yellow]samples that could not be read and are not counted: {len(report.bad_samples)}[/yellow]")


def _stem(dataset: str, task: str) -> str:
    return re.sub(r"[^\w.-]+", "-", f"{dataset}_{task}")


def _write(path: Path, text: str) -> None:
    """Whole or not at all: a reader never sees half a file."""
    part = path.with_name(path.name + ".part")
    part.write_text(text + "\n", encoding="utf-8")
    os.replace(part, path)
