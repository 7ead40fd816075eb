"""The tables of report.html: the summary at its top, and the table of each task, which the script can sort."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby

from flexiclip_eval.report.table import Report, best_values, cells, label_of, of_task, short_labels
from flexiclip_eval.rows import Row, TaskInfo, is_share, long_name, primary_metric, short_name, show
from flexiclip_eval.tradeoffs import TOLERANCE, Curve

COSTS = ("tokens", "patch", "GFLOPs", "images/s")


def render_summary(report: Report) -> str:
    """Return a table with a line per task: its best model and length, and the cheapest that is almost as good."""
    lines = []
    for number, task in enumerate(report.tasks):
        rows = of_task(report.rows, task)
        metric = primary_metric(rows[0].metrics)
        best, cheapest = best_and_cheapest([row for row in rows if metric in row.metrics], metric)
        kind = task.task.removeprefix("zeroshot_").replace("_", " ")
        link = f'<a href="#task-{number}">{escape(task.dataset)} · {escape(kind)}</a>'
        chance = show(metric, task.chance.get(metric))
        found = f"<td>{_named(report, best, metric)}</td><td>{_named(report, cheapest, metric) if cheapest else '–'}</td>"
        lines.append(f'<tr><th scope="row">{link}</th><td>{escape(short_name(metric))}</td>{found}<td>{chance}</td></tr>')
    heads = ("data set and task", "metric", "best", "cheapest as good", "chance")
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    note = f"As good: within {TOLERANCE:g} point of the best, or within the standard error of the difference."
    table = f'<table class="summary"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    return f'<div class="scroll">{table}</div><p class="note">{note}</p>'


def best_and_cheapest(rows: Sequence[Row], metric: str) -> tuple[Row, Row | None]:
    """Return (the row with the highest metric, the one with the fewest GFLOPs that is not clearly worse; None without costs).

    Not clearly worse: within TOLERANCE points, or within the standard error of the difference.
    """
    best = max(rows, key=lambda row: (row.metrics[metric], -(row.gflops or 0)))
    curve = Curve(list(rows), [None] * len(rows))
    room = TOLERANCE / 100 + 1e-9
    good = [row for row in rows if best.metrics[metric] - row.metrics[metric] <= max(room, curve.noise(best, row) or 0.0)]
    known = [(row.gflops, number) for number, row in enumerate(good) if row.gflops is not None]
    return best, good[min(known)[1]] if known else None


def _named(report: Report, row: Row, metric: str) -> str:
    """Return a value with its model, length and cost."""
    short = short_labels([label_of(model) for model in report.models])
    label = label_of(row)
    parts = [
        escape(short.get(label, label)) if len(report.models) > 1 else "",
        f"seqhw {row.seqhw}" if row.seqhw is not None else "",
        f"{row.gflops:.3g} GFLOPs" if row.gflops is not None else "",
    ]
    return f"<b>{_value(metric, row)}</b> {', '.join(filter(None, parts))}"


def render_task(report: Report, task: TaskInfo, rows: Sequence[Row]) -> str:
    """Return the table of a task. The script sorts its rows by the `data-value` of their cells.

    The first column, the length with the colour of its model, stays in place when the table is scrolled. Metrics of one family
    share a heading, such as text→image over R@1, R@5 and R@10.
    """
    names = _grouped(dict.fromkeys(name for row in rows for name in row.metrics))
    several = len(report.models) > 1
    labels = [label_of(model) for model in report.models]
    short, best = short_labels(labels), best_values(rows, names)
    body = []
    for row in rows:
        label = label_of(row)
        sign = f'<span class="sign c{labels.index(label) % 6}"></span>' if several else ""
        length, *costs = cells(row)
        line = f'<th scope="row" class="length" data-value="{row.seqhw or ""}">{sign}{length}</th>'
        if several:
            line += (
                f'<td class="text" title="{escape(label)}" data-value="{escape(label)}">{escape(short.get(label, label))}</td>'
            )
        values = (row.seq_len, row.patch_size, row.gflops, row.images_per_s)
        for value, text in zip(values, costs, strict=True):
            line += f'<td data-value="{(value[0] if isinstance(value, list) else value) or ""}">{escape(text)}</td>'
        for name in names:
            given = row.metrics.get(name)
            mark = ' class="best"' if given is not None and given == best.get(name) else ""
            line += f'<td{mark} data-value="{"" if given is None else given}">{_value(name, row)}</td>'
        body.append(f"<tr>{line}</tr>")
    chance = "".join(f"<td>{show(name, task.chance.get(name))}</td>" for name in names)
    foot = f'<tr><th scope="row" class="length">chance</th><td colspan="{len(COSTS) + several}"></td>{chance}</tr>'
    return f"<table>{_head(names, several)}<tbody>{''.join(body)}</tbody><tfoot>{foot}</tfoot></table>"


def _value(metric: str, row: Row) -> str:
    """Return a value of a row, with its standard error in small letters."""
    value, error = row.metrics.get(metric), row.error(metric)
    if value is None or error is None:
        return show(metric, value)
    return f"{show(metric, value)} <small>±{100 * error if is_share(metric) else error:.1f}</small>"


def _head(names: Sequence[str], several: bool) -> str:
    """Return the head of a table: a line with the families of metrics, if any has several, and the line to sort by."""
    split = [_family(name) for name in names]
    groups = [(family, len(list(group))) for family, group in groupby(family for family, _ in split)]
    columns = ["seqhw", *["model"] * several, *COSTS]
    plain = "".join(f'<th scope="col"{_classes(text)}>{text}</th>' for text in columns) + "".join(
        f'<th scope="col" title="{escape(long_name(name))}: {escape(name)}">{escape(text)}</th>'
        for name, (_, text) in zip(names, split, strict=True)
    )
    if all(family == "" for family, _ in groups):
        return f"<thead><tr>{plain}</tr></thead>"
    above = f'<th class="length"></th><td colspan="{len(columns) - 1}"></td>'
    above += "".join(f'<th class="group" scope="colgroup" colspan="{count}">{escape(family)}</th>' for family, count in groups)
    return f"<thead><tr>{above}</tr><tr>{plain}</tr></thead>"


def _classes(heading: str) -> str:
    return {"seqhw": ' class="length"', "model": ' class="text"'}.get(heading, "")


def _grouped(names: Iterable[str]) -> list[str]:
    """Return metrics in their order, except that those of one direction of retrieval are next to each other."""
    names = list(names)
    families = list(dict.fromkeys(_family(name)[0] for name in names))
    return sorted(names, key=lambda name: families.index(_family(name)[0]))


def _family(metric: str) -> tuple[str, str]:
    """Split the short name of a metric into a group and a column: text→image R@5 is R@5 of text→image."""
    direction, space, column = short_name(metric).rpartition(" ")
    return (direction, column) if space and "→" in direction else ("", short_name(metric))
