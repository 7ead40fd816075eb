"""Renders report.html: all results of an evaluation on one page that loads nothing from elsewhere.

The tables and pictures are in the page itself and can be read without its script. The script (page/*.js) adds interactive
curves. A policy allows only the page's own script and style, by their hashes, so that no caption, key or class name can run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from flexiclip_eval.report.page_data import (
    FOLDER,
    PAGE_BYTES,
    Gallery,
    add_thumbnails,
    as_script,
    fill,
    frame,
    inline_pictures,
    page_data,
    style,
)
from flexiclip_eval.report.table import ModelInfo, Report, brief, cells, label_of, labelled_sentence, of_task
from flexiclip_eval.rows import Row, TaskInfo, best_of, pixels, short_name, show

from flexiclip.config import dump

SCRIPTS = ("chart.js", "curves.js", "details.js", "main.js")
BAD_SHOWN = 200  # bad samples that the page lists

Pictures = Mapping[tuple[str, str], Sequence[Path]]


def render_page(report: Report, pictures: Pictures, gallery: Gallery | None = None) -> str:
    """Return the page as HTML.

    pictures: {(dataset, task): PNG files}, which are embedded while there is room. gallery: the images that the page may show;
    None: it shows no images.
    """
    script = '"use strict";\n(() => {\n' + "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS) + "})();\n"
    data = page_data(report)
    room = PAGE_BYTES - len(as_script(data).encode()) - len(style()) - len(script)
    sections = []
    for number, task in enumerate(report.tasks):
        section = _section(report, task, number, pictures.get((task.dataset, task.task), ()), room // 2)
        room -= len(section.encode())
        sections.append(section)
    if gallery is not None:
        add_thumbnails(data, gallery, room - (64 << 10))  # 64 KiB for the rest of the page: command, configs, bad samples
    fields = {
        "tasks": "\n".join(sections),
        "bad": _bad_samples(report),
        "command": escape(report.command),
        "configs": "\n".join(_config(model) for model in report.models),
        "data": as_script(data),
        "script": script,
    }
    title = " · ".join(label_of(model) for model in report.models)
    return frame(fill("page.html", fields), title=title, lead=_lead(report), contents=_contents(report), script=script)


def _lead(report: Report) -> str:
    lengths = sorted({row.seqhw for row in report.rows if row.seqhw is not None})
    if not lengths:
        return "One fixed sequence length."
    trained = sorted({length for model in report.models for length in model.trained_seqhw})
    sizes = {pixels(row.image_size) for row in report.rows if row.image_size is not None}
    text = f"Images of {' and '.join(sorted(sizes))} pixels at seqhw {', '.join(map(str, lengths))}."
    return text + (f" Trained at seqhw {', '.join(map(str, trained))}." if trained else "")


def _contents(report: Report) -> str:
    links = (f'<a href="#task-{i}">{escape(task.dataset)} · {escape(_kind(task))}</a>' for i, task in enumerate(report.tasks))
    return " ".join((*links, '<a href="#samples">Samples</a>', '<a href="#command">Command</a>'))


def _kind(task: TaskInfo) -> str:
    return task.task.removeprefix("zeroshot_").replace("_", " ")


def _config(model: ModelInfo) -> str:
    text = dump(model.config) if model.config else "a foreign model, no config of ours"
    return f"<details><summary>{escape(label_of(model))}: resolved config</summary><pre>{escape(text)}</pre></details>"


def _section(report: Report, task: TaskInfo, number: int, pictures: Sequence[Path], room: int) -> str:
    rows = of_task(report.rows, task)
    texts = [labelled_sentence(report, choice) for choice in of_task(report.choices, task)]
    choices = "".join(f"<li>{escape(text)}</li>" for text in texts)
    images = inline_pictures([(file, f"{_kind(task)} on {task.dataset}: {file.stem}") for file in pictures], room)
    return (
        f'<section class="task" id="task-{number}"><h2>{escape(task.dataset)} · {escape(_kind(task))}</h2>'
        f'<div class="about">{_about(task, rows[0].n)}</div><div class="curves"></div>'
        f'<div class="pictures">{images}</div>'
        f"{f'<ul class=choices>{choices}</ul>' if choices else ''}"
        f'<div class="scroll">{_table(report, task, rows)}</div>'
        '<div class="cascade"></div><div class="classes"></div><div class="found"></div></section>'
    )


def _table(report: Report, task: TaskInfo, rows: Sequence[Row]) -> str:
    """Return a table of rows that the script can sort by the `data-value` of the cells."""
    names = list(rows[0].metrics)
    several = len(report.models) > 1
    headings = ([*["model"] * several, "seqhw", "tokens", "patch", "GFLOPs", "images/s"], map(short_name, names))
    head = "".join(f'<th scope="col">{escape(text)}</th>' for part in headings for text in part)
    best = {name: best_of(name, [row.metrics[name] for row in rows if name in row.metrics]) for name in names}
    body = []
    for row in rows:
        costs = (row.seqhw, row.seq_len, row.patch_size, row.gflops, row.images_per_s)
        label = label_of(row)
        line = f'<th scope="row" title="{escape(label)}" data-value="{escape(label)}">{escape(brief(label, 28))}</th>' * several
        for cost, text in zip(costs, cells(row), strict=True):
            line += f'<td data-value="{(cost[0] if isinstance(cost, list) else cost) or ""}">{escape(text)}</td>'
        for name in names:
            value = row.metrics.get(name)
            mark = ' class="best"' if value == best[name] else ""
            line += f'<td{mark} data-value="{"" if value is None else value}">{show(name, value)}</td>'
        body.append(f"<tr>{line}</tr>")
    chance = "".join(f"<td>{show(name, task.chance.get(name))}</td>" for name in names)
    foot = f'<tr><th scope="row" colspan="{5 + several}">chance</th>{chance}</tr>'
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody><tfoot>{foot}</tfoot></table>"


def _about(task: TaskInfo, images: int) -> str:
    if task.captions is not None:
        return f"{images:,} images, {task.captions:,} captions. A hit: any of the query's positives is among the first k."
    if not task.classes:
        return f"{images:,} images."
    share = f" The largest class holds {task.largest_class:.1%} of the images." if task.largest_class is not None else ""
    names = escape(", ".join(task.classes))
    return f"{images:,} images, {len(task.classes):,} classes.{share} <details><summary>Classes</summary>{names}</details>"


def _bad_samples(report: Report) -> str:
    left = "".join(f"<li>{escape(name)}: {escape(reason)}</li>" for name, reason in report.unscored.items())
    unscored = f"<p>Data sets that could not be scored as a whole:</p><ul>{left}</ul>" if left else ""
    if not report.bad_samples:
        return unscored or "<p>Every sample could be read.</p>"
    items = "".join(
        f"<li><code>{escape(bad['shard'])}</code> <code>{escape(bad['key'])}</code>: {escape(bad['reason'])}</li>"
        for bad in report.bad_samples[:BAD_SHOWN]
    )
    more = len(report.bad_samples) - BAD_SHOWN
    rest = f"<p>And {more:,} more, in <code>report.json</code>.</p>" if more > 0 else ""
    return f"{unscored}<p>Could not be read and are not counted: {len(report.bad_samples)}</p><ul>{items}</ul>{rest}"
