"""`flexiclip compare`: joins finished evaluations in one picture and one report, with a curve per model.

    flexiclip compare flexible=runs/flexible/eval "fixed at seqhw 6=runs/fixed/eval" --output runs/compared
    flexiclip compare runs/flexible/eval runs/fixed/eval --metric acc1 --output flexible_vs_fixed.png

A model is known by the name of its results (LABEL=), or by its own names if there are several models in one file. Widths of
embeddings (`--widths`) are curves of their own. Chance and the training lengths come from the report.json next to each
results.json; without it, they are left out.
"""

from __future__ import annotations

import datetime
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from flexiclip_eval.report.drawing import drawn
from flexiclip_eval.report.files import check_output, read_report, require_folder, write_results, write_whole
from flexiclip_eval.report.plots import plot_runs
from flexiclip_eval.report.table import Labelled, Report, label_of, name_of, of_task, runs_of, short_labels
from flexiclip_eval.report.terminal import print_report
from flexiclip_eval.rows import Details, TaskInfo, primary_metric
from flexiclip_eval.suites.layout import printable, repeated
from flexiclip_eval.tradeoffs import choose, fronts

import flexiclip
from flexiclip.errors import UserError

PICTURES = ("png", "svg", "pdf")


def compare(
    runs: Sequence[str], output: Path, metric: str | None = None, dataset: str | None = None, tables: Sequence[str] = ()
) -> list[str]:
    """Compare evaluations, and return lines that name the files that were written.

    runs: LABEL=RESULTS or RESULTS, a results.json or its folder. output: a picture if it has an ending, else a folder for a
    picture per task and a report. metric: only the tasks that have it are drawn; default: the metric that represents each task.
    dataset: only this data set. tables: as in EvalOptions. Raises UserError if the rows cannot be compared.
    """
    report = join(runs, dataset)
    chosen = {i: name for i, task in enumerate(report.tasks) if (name := _metric_of(report, task, metric)) is not None}
    if not chosen:
        names = sorted({f"{row.dataset} {name}" for row in report.rows for name in row.metrics})
        wanted = " ".join(filter(None, (dataset, metric))) or "a metric"
        raise UserError(f"no row with a length has {wanted}; choose one of {', '.join(names) or 'nothing: there are no rows'}")
    if output.suffix and not output.is_dir():
        sets = list(dict.fromkeys(report.tasks[i].dataset for i in chosen))
        if len(sets) > 1:
            raise UserError(
                f"the runs have several data sets with {metric or 'a metric'}: choose one with --dataset, of {', '.join(sets)}"
            )
        number, name = next(iter(chosen.items()))
        lines = write_results(report, None, None, tables)[:-1]
        return [*lines, _draw(report, report.tasks[number], name, output)]
    check_output(output, tables)
    print_report(report)
    results = write_results(report, output, None, tables)
    pictures = []
    for number, name in chosen.items():
        task = report.tasks[number]
        stem = "".join(letter if letter.isalnum() or letter in "-_.@" else "-" for letter in f"{task.dataset}_{name}")
        pictures.append(f"picture: {_draw(report, task, name, output / f'compare_{stem}.png')}")
    return [*pictures, *results]


def join(runs: Sequence[str], dataset: str | None = None) -> Report:
    """Return one report of several results, in which every model has its own label. dataset: only its rows. Raises UserError."""
    found = [_split(run) for run in runs]
    if twice := repeated(label for label, _ in found if label is not None):
        raise UserError(f"the label {twice[0]} is given twice; write LABEL=RESULTS, each label once")
    parts = [_labelled(read_report(path), label) for label, path in found]
    if repeated(name for part in parts for name in {label_of(model) for model in part.models}):
        places = short_labels([str(path) for _, path in found])  # the same model in several results
        parts = [part if label else _labelled(part, places[str(path)]) for part, (label, path) in zip(parts, found, strict=True)]
    joined = Report(printable(shlex.join(sys.argv)), date=str(datetime.date.today()), version=flexiclip.__version__)
    for part in parts:
        joined.models += part.models
        joined.cascades += [curve for curve in part.cascades if dataset in (None, curve.dataset)]
        joined.add_bad_samples(part.bad_samples)
        for row, details in zip(part.rows, part.details, strict=True):
            if dataset in (None, row.dataset):
                (task,) = [task for task in part.tasks if (task.dataset, task.task) == (row.dataset, row.task)]
                joined.add(row, task, _without_images(details))
    _require_alike(joined, parts)
    joined.choices, joined.fronts = choose(joined.rows), fronts(joined.rows)
    return joined


def _without_images(details: Details) -> Details:
    """Return what the report of several results shows of the details; their images are not read again."""
    kept = Details()
    if "per_class" in details:
        kept["per_class"] = details["per_class"]
    if "confusion" in details:
        kept["confusion"] = details["confusion"]
    return kept


def _split(run: str) -> tuple[str | None, Path]:
    """Split LABEL=RESULTS. A text that names a file or a folder has no label."""
    label, equals, path = run.partition("=")
    if not equals or Path(run).exists():
        return None, Path(run)
    if not label.strip() or not path:
        raise UserError(f"{run!r}: write LABEL=RESULTS")
    return label.strip(), Path(path)


def _labelled(report: Report, label: str | None) -> Report:
    """Return results whose models have this label; with several models in them, each model has its own name after it."""
    if label is None:
        return report
    short = short_labels(list(dict.fromkeys(map(name_of, report.models))))

    def named(item: Labelled) -> Labelled:
        own = name_of(item)
        return replace(item, label=label if len(short) == 1 else f"{label}: {short.get(own, own)}")

    models, rows = [named(model) for model in report.models], [named(row) for row in report.rows]
    return replace(report, models=models, rows=rows, cascades=[named(curve) for curve in report.cascades])


def _require_alike(joined: Report, parts: Sequence[Report]) -> None:
    """Raise UserError if a task was scored on different numbers of images; leave details out whose classes differ."""
    for task in joined.tasks:
        counts = {label: rows[0].n for label, rows in runs_of(joined, task).items()}
        if len(set(counts.values())) > 1:
            raise UserError(
                f"{task.dataset}: the runs were scored on different numbers of images ({counts}): evaluate them on the same "
                "samples"
            )
        if len({each.classes for part in parts for each in of_task(part.tasks, task)}) > 1:
            own = (task.dataset, task.task)
            pairs = zip(joined.rows, joined.details, strict=True)
            joined.details = [{} if (row.dataset, row.task) == own else details for row, details in pairs]


def _metric_of(report: Report, task: TaskInfo, metric: str | None) -> str | None:
    """Return the metric to draw: `metric`, else the one that represents the task; None if no row with a length has it."""
    rows = [row for row in of_task(report.rows, task) if row.seq_len is not None]
    found = metric or (primary_metric(rows[0].metrics) if rows else None)
    return found if any(found in row.metrics for row in rows) else None


def _draw(report: Report, task: TaskInfo, metric: str, output: Path) -> str:
    """Draw a metric of all models against the tokens, and return the name of the picture. Raises UserError."""
    kind = output.suffix[1:].lower()
    if kind not in PICTURES:
        raise UserError(f"--output {output}: cannot write a .{kind} picture; give a folder, or one of {', '.join(PICTURES)}")
    require_folder(output.parent, f"--output {output}")
    every = runs_of(report, task).items()
    drawable = {label: [row for row in rows if metric in row.metrics and row.seq_len is not None] for label, rows in every}
    runs = {label: sorted(rows, key=lambda row: row.seq_len or 0) for label, rows in drawable.items() if rows}
    own = {label_of(model): model.trained_seqhw for model in report.models if len(model.trained_seqhw) == 1}
    write_whole(output, drawn(plot_runs(runs, metric, chance=task.chance.get(metric), own=own), kind))
    return printable(str(output))
