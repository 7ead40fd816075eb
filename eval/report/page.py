"""Renders report.html: all results of an evaluation on one page that loads nothing from elsewhere.

The tables and pictures are in the page itself and can be read without its script. The script (page/*.js) adds interactive
curves. A policy allows only the page's own script and style, by their hashes, so that no caption, key or class name can run.
page_tables.py has the tables.
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
from flexiclip_eval.report.page_tables import render_summary, render_task
from flexiclip_eval.report.table import ModelInfo, Report, label_of, of_task, short_labels
from flexiclip_eval.rows import TaskInfo, pixels
from flexiclip_eval.tradeoffs import sentence

from flexiclip.config import dump

SCRIPTS = ("chart.js", "curves.js", "details.js", "mistakes.js", "main.js")
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
        "summary": render_summary(report),
        "models": _models(report),
        "tasks": "\n".join(sections),
        "bad": _bad_samples(report),
        "command": escape(report.command),
        "configs": "\n".join(_config(model) for model in report.models),
        "data": as_script(data),
        "script": script,
    }
    return frame(fill("page.html", fields), title=_title(report), lead=_lead(report), contents=_contents(report), script=script)


def _title(report: Report) -> str:
    sets = len({task.dataset for task in report.tasks})
    of_one = label_of(report.models[0]) if len(report.models) == 1 else _counted(len(report.models), "model")
    return f"Evaluation of {of_one} on {_counted(sets, 'data set')}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _lead(report: Report) -> str:
    """Return date and version, the sizes of images and lengths, and that no sample is missing, if none is."""
    made = [report.date, f"flexiclip {report.version}" if report.version else ""]
    lengths = sorted({row.seqhw for row in report.rows if row.seqhw is not None})
    sizes = sorted({pixels(row.image_size) for row in report.rows if row.image_size is not None})
    at = f"at seqhw {', '.join(map(str, lengths))}" if lengths else "at one fixed length"
    shown = f"images of {' and '.join(sizes)} pixels {at}" if sizes else at
    complete = "" if report.bad_samples or report.unscored else "every sample could be read"
    return " · ".join(filter(None, (*made, shown, complete)))


def _contents(report: Report) -> str:
    links = [f'<a href="#task-{i}">{escape(task.dataset)} · {escape(_kind(task))}</a>' for i, task in enumerate(report.tasks)]
    bad = ['<a href="#samples">Samples</a>'] if report.bad_samples or report.unscored else []
    return " ".join([*links, *bad, '<a href="#command">Command</a>'])


def _kind(task: TaskInfo) -> str:
    return task.task.removeprefix("zeroshot_").replace("_", " ")


def _models(report: Report) -> str:
    """Return the list of the models: the short names of tables and menus, the whole ones, and the lengths of the training."""
    if len(report.models) == 1:
        (model,) = report.models
        trained = ", ".join(map(str, model.trained_seqhw))
        return f"<p>Trained at seqhw {trained}.</p>" if trained else ""
    labels = [label_of(model) for model in report.models]
    short = short_labels(labels)
    items = []
    for number, (label, model) in enumerate(zip(labels, report.models, strict=True)):
        source = f"{model.model} {model.pretrained}".strip()
        whole = f" {escape(source)}" if short[label] != source else ""
        trained = f", trained at seqhw {', '.join(map(str, model.trained_seqhw))}" if model.trained_seqhw else ""
        sign = f'<span class="sign c{number % 6}"></span>'
        items.append(f"<li>{sign}<b>{escape(short[label])}</b>{whole}{trained}</li>")
    return f'<ul class="models">{"".join(items)}</ul>'


def _config(model: ModelInfo) -> str:
    text = dump(model.config) if model.config else "a foreign model, no config of ours"
    return f"<details><summary>{escape(label_of(model))}: resolved config</summary><pre>{escape(text)}</pre></details>"


def _section(report: Report, task: TaskInfo, number: int, pictures: Sequence[Path], room: int) -> str:
    rows = of_task(report.rows, task)
    short = short_labels([label_of(model) for model in report.models])
    choices = ""
    for choice in of_task(report.choices, task):
        label = label_of(choice)
        model = f"{escape(short.get(label, label))}: " if len(report.models) > 1 else ""
        choices += f"<li>{model}{escape(sentence(choice))}</li>"
    images = inline_pictures([(file, f"{_kind(task)} on {task.dataset}: {file.stem}") for file in pictures], room)
    return (
        f'<section class="task" id="task-{number}"><h2>{escape(task.dataset)} · {escape(_kind(task))}</h2>'
        f'<div class="about">{_about(task, rows[0].n)}</div><div class="curves"></div>'
        f'<div class="pictures">{images}</div>'
        f"{f'<ul class=choices>{choices}</ul>' if choices else ''}"
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table of results">{render_task(report, task, rows)}</div>'
        '<div class="cascade"></div><div class="classes"></div><div class="confusion"></div><div class="mistakes"></div>'
        '<div class="found"></div></section>'
    )


def _about(task: TaskInfo, images: int) -> str:
    if task.captions is not None:
        return f"{images:,} images, {task.captions:,} captions. A hit: any of the query's positives is among the first k."
    if not task.classes:
        return f"{images:,} images."
    share = f" The largest class holds {task.largest_class:.1%} of the images." if task.largest_class is not None else ""
    names = escape(", ".join(task.classes))
    return f"{images:,} images, {len(task.classes):,} classes.{share} <details><summary>Classes</summary>{names}</details>"


def _bad_samples(report: Report) -> str:
    """Return the section of what could not be read or scored; an empty text if everything could."""
    if not report.bad_samples and not report.unscored:
        return ""
    left = "".join(f"<li>{escape(name)}: {escape(reason)}</li>" for name, reason in report.unscored.items())
    text = f"<p>Data sets that could not be scored as a whole:</p><ul>{left}</ul>" if left else ""
    if report.bad_samples:
        items = "".join(
            f"<li><code>{escape(bad['shard'])}</code> <code>{escape(bad['key'])}</code>: {escape(bad['reason'])}</li>"
            for bad in report.bad_samples[:BAD_SHOWN]
        )
        more = len(report.bad_samples) - BAD_SHOWN
        rest = f"<p>And {more:,} more, in <code>report.json</code>.</p>" if more > 0 else ""
        text += f"<p>Could not be read and are not counted: {len(report.bad_samples)}</p><ul>{items}</ul>{rest}"
    return f'<section id="samples"><h2>Samples</h2>{text}</section>'
