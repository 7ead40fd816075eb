"""report.html: the tables, pictures, command and config of an evaluation on one page that loads nothing from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path

from flexiclip.config import dump

from .table import ModelInfo, Report, TaskInfo, cells, rows_of, short_name

_TEMPLATE = Path(__file__).with_name("report.html")


def render_page(report: Report, pictures: Mapping[tuple[str, str], bytes]) -> str:
    """The page. pictures: (dataset, task) -> PNG, inlined as data."""
    first = report.rows[0]
    fields = {
        "title": escape(f"{first.model} {first.pretrained}".strip()),
        "lead": escape(_lead(report)),
        "tasks": "\n".join(_section(report, task, pictures.get((task.dataset, task.task))) for task in report.tasks),
        "bad": _bad_samples(report),
        "command": escape(report.command),
        "config": escape("\n".join(_config(model) for model in report.models)),
    }
    page = _TEMPLATE.read_text(encoding="utf-8")
    for name, text in fields.items():
        page = page.replace(f"<!-- {name} -->", text)
    return page


def _lead(report: Report) -> str:
    lengths = sorted({row.seqhw for row in report.rows if row.seqhw is not None})
    if not lengths:
        return "One fixed sequence length."
    trained = ", ".join(map(str, sorted({length for model in report.models for length in model.trained_seqhw}))) or "unknown"
    size = report.rows[0].image_size
    side = "×".join(map(str, size)) if isinstance(size, list) else size
    return f"Images of {side} pixels at seqhw {', '.join(map(str, lengths))}. Trained at seqhw {trained}."


def _config(model: ModelInfo) -> str:
    return dump(model.config) if model.config else f"{model.model} {model.pretrained}: a foreign model, no config of ours"


def _section(report: Report, task: TaskInfo, picture: bytes | None) -> str:
    rows = rows_of(report, task)
    names = list(rows[0].metrics)
    head = "".join(f"<th>{escape(h)}</th>" for h in ("seqhw", "tokens", "patch", "GFLOPs", "images/s", *map(short_name, names)))
    best = {name: max(row.metrics[name] for row in rows) for name in names}
    body = []
    for row in rows:
        values = [f"<td{' class=best' if row.metrics[n] == best[n] else ''}>{row.metrics[n]:.1%}</td>" for n in names]
        body.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells(row)) + "".join(values) + "</tr>")
    chance = "".join(f"<td>{task.chance[name]:.1%}</td>" for name in names)
    body.append(f"<tr class=chance><td colspan=5>chance</td>{chance}</tr>")
    image = ""
    if picture is not None:
        data = base64.b64encode(picture).decode("ascii")
        image = f'<img alt="{escape(task.task)} against the sequence length" src="data:image/png;base64,{data}">'
    return (
        f"<section><h2>{escape(task.dataset)} · {escape(task.task)}</h2><p>{escape(_about(task, rows[0].n))}</p>"
        f"{image}<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></section>"
    )


def _about(task: TaskInfo, images: int) -> str:
    if task.captions is not None:
        return f"{images} images, {task.captions} distinct captions. A hit: any of the query's positives is among the first k."
    share = f"{task.largest_class:.1%}" if task.largest_class is not None else "unknown"
    classes = f"{len(task.classes)} classes: {', '.join(task.classes)}"
    return f"{images} images, {classes}. The largest class holds {share} of the images."


def _bad_samples(report: Report) -> str:
    if not report.bad_samples:
        return "<p>Every sample could be read.</p>"
    items = "".join(
        f"<li><code>{escape(bad['shard'])}</code> <code>{escape(bad['key'])}</code>: {escape(bad['reason'])}</li>"
        for bad in report.bad_samples
    )
    return f"<p>Could not be read and are not counted: {len(report.bad_samples)}</p><ul>{items}</ul>"
