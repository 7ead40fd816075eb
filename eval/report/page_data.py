"""The frame and the data of report.html: style and policy, embedded pictures, thumbnails, and the numbers that its script draws.

The page is a single file that can be mailed or put on a web server, so its size has a bound (PAGE_BYTES): the recalls of classes,
pictures and thumbnails are left out once it is reached.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from flexiclip_eval.data.images import Record, open_source
from flexiclip_eval.data.shards import Source
from flexiclip_eval.report.table import Report, label_of, of_task, short_labels
from flexiclip_eval.rows import Details, TaskInfo, is_share, long_name, primary_metric, short_name
from flexiclip_eval.suites.dataset import DatasetConfig
from flexiclip_eval.suites.layout import printable
from flexiclip_eval.tradeoffs import sentence

from flexiclip.data.samples import BadSample

FOLDER = Path(__file__).with_name("page")
PAGE_BYTES = 4 << 20  # largest size of a page


def style() -> str:
    """Return the style sheet of the pages."""
    return (FOLDER / "page.css").read_text(encoding="utf-8")


def policy(script: str | None = None) -> str:
    """Return a Content-Security-Policy that allows only the page's own style and script, by their hashes, and embedded images."""
    scripts = "" if script is None else f"script-src '{_hash(script)}'; "
    return f"default-src 'none'; img-src data:; style-src '{_hash(style())}'; {scripts}base-uri 'none'; form-action 'none'"


def frame(body: str, *, title: str, lead: str, contents: str, script: str | None = None) -> str:
    """Return a whole HTML page around `body`.

    title, lead: plain text, which is escaped. contents: HTML with the links to the sections. script: the only script that the
    page may run; `body` has to contain it.
    """
    texts = {"title": escape(title), "lead": escape(lead)}
    return fill("frame.html", {"policy": policy(script), "style": style(), "contents": contents, "body": body.rstrip()} | texts)


def fill(template: str, fields: Mapping[str, str]) -> str:
    """Return a file of page/ with each `<!-- name -->` replaced by its field.

    All fields are replaced in one pass, so that a text that looks like a field is not replaced again.
    """
    text = (FOLDER / template).read_text(encoding="utf-8")
    return re.sub(r"<!-- (\w+) -->", lambda match: fields[match[1]], text)


def inline_pictures(pictures: Sequence[tuple[Path, str]], room: int) -> str:
    """Return (PNG file, what it shows) as img elements that contain the file, up to `room` bytes in total.

    Further pictures are mentioned by the names of their files.
    """
    parts = []
    for file, alt in pictures:
        encoded = base64.b64encode(file.read_bytes()).decode("ascii")
        room -= len(encoded)
        inside = f'<img alt="{escape(alt)}" src="data:image/png;base64,{encoded}">'
        parts.append(inside if room > 0 else f"<p>The picture is in <code>{escape(file.name)}</code> next to this page.</p>")
    return "".join(parts)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


SIDE = 96  # pixels on the longer side of a thumbnail
QUALITY = 72  # of the JPEG, which then has 2 to 4 KB


class Gallery:
    """Thumbnails of images, by the `dataset` of the rows and the positions of the records that the details of a result mention.

    The few images that a page shows are read again from their data sets when the scores are known. Until then only the numbers of
    the samples are kept, so that a data set of 50,000 images costs hardly any memory.
    """

    def __init__(self) -> None:
        self._added: dict[str, tuple[DatasetConfig, array[int]]] = {}
        self._sources: dict[str, Source] = {}

    def add(self, rows: Iterable[str], config: DatasetConfig, records: Sequence[Record]) -> None:
        """Add a data set under the names that its rows have in `dataset`. records: those of the images that could be read."""
        self._added |= dict.fromkeys(rows, (config, array("q", (record.number for record in records))))

    def thumbnail(self, dataset: str, record: int) -> str | None:
        """Return a JPEG in base64; None if the data set was not added or the image can no longer be read."""
        from PIL import Image

        if dataset not in self._added:
            return None
        config, numbers = self._added[dataset]
        if config.name not in self._sources:
            self._sources[config.name] = open_source(config)
        try:
            image = self._sources[config.name].item(numbers[record], ()).image
        except BadSample:
            return None
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        data = io.BytesIO()
        image.save(data, "JPEG", quality=QUALITY, optimize=True)
        return base64.b64encode(data.getvalue()).decode("ascii")


CLASS_BYTES = 1 << 20  # for the recalls and confusions of all classes; details.json has every one


def page_data(report: Report) -> dict[str, Any]:
    """Return what the script of the page draws, as plain data: models, tasks with their rows, and no thumbnails yet.

    A row has the keys of results.json, except that its `model` is an index into `models`; so does a cascade with those of
    report.json. The recalls and confusions of the classes are left out for tasks that do not fit into CLASS_BYTES.
    """
    labels = [label_of(model) for model in report.models]
    short = short_labels(labels)
    left = CLASS_BYTES
    tasks = []
    for task in report.tasks:
        data = _task(report, task, labels)
        size = len(json.dumps([(row["perClass"], row["confusion"]) for row in data["rows"]]))
        if size > left:
            data["rows"] = [{**row, "perClass": None, "confusion": None} for row in data["rows"]]
        else:
            left -= size
        tasks.append(data)
    pairs = zip(labels, report.models, strict=True)
    models = [{"name": label, "short": short[label], "trained": model.trained_seqhw} for label, model in pairs]
    return {"models": models, "tasks": tasks, "thumbs": {}}


def add_thumbnails(data: dict[str, Any], gallery: Gallery, room: int) -> None:
    """Fill data["thumbs"], {dataset: {record: JPEG in base64}}, with what captions found and with wrong images.

    This goes caption by caption (or image by image), with all lengths of one before the next. room: bytes for all data sets
    together; captions and images that do not fit are removed from the data.
    """
    shown = [(task, key) for task in data["tasks"] for key in ("found", "mistakes") if any(row[key] for row in task["rows"])]
    for task, key in shown:
        share = room // len(shown)
        thumbs = data["thumbs"].setdefault(task["dataset"], {})
        for number in range(max(len(row[key] or ()) for row in task["rows"])):
            examples = [row[key][number] for row in task["rows"] if row[key] and len(row[key]) > number]
            wanted = {image for example in examples for image in _images_of(example)} - thumbs.keys()
            new = {record: picture for record in sorted(wanted) if (picture := gallery.thumbnail(task["dataset"], record))}
            share -= sum(len(picture) + 16 for picture in new.values())
            if share < 0:
                for row in task["rows"]:
                    row[key] = row[key] and row[key][:number]
                break
            thumbs.update(new)


def _images_of(example: Mapping[str, Any]) -> list[int]:
    """Return the images that are shown for a caption, or the one image of a mistake."""
    return [example["image"]] if "image" in example else [*example["ranked"], *example["positives"][:1]]


def as_script(data: Mapping[str, object]) -> str:
    """Return data as JSON for a script element, escaped so that no text can end the element or begin a comment."""
    text = printable(json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _task(report: Report, task: TaskInfo, labels: list[str]) -> dict[str, Any]:
    rows = of_task(report.rows, task)
    names = list(rows[0].metrics)
    own = (task.dataset, task.task)
    details = [d for row, d in zip(report.rows, report.details, strict=True) if (row.dataset, row.task) == own]
    choices = of_task(report.choices, task)
    return {
        "dataset": task.dataset,
        "task": task.task,
        "metrics": [
            {
                "key": name,
                "name": short_name(name),
                "long": long_name(name),
                "share": is_share(name),
                "chance": task.chance.get(name),
            }
            for name in names
        ],
        "primary": names.index(primary_metric(rows[0].metrics)),
        "classes": list(task.classes),
        "rows": [
            {
                **asdict(row),
                "model": labels.index(label_of(row)),
                **_details(detail, task),
            }
            for row, detail in zip(rows, details, strict=True)
        ],
        "choices": [{"model": labels.index(label_of(c)), "seqhw": c.seqhw, "text": sentence(c)} for c in choices],
        "cascades": [{**asdict(curve), "model": labels.index(label_of(curve))} for curve in of_task(report.cascades, task)],
    }


def _details(detail: Details, task: TaskInfo) -> dict[str, Any]:
    recalls = [_short(detail["per_class"].get(c)) for c in task.classes] if "per_class" in detail else None
    return {"perClass": recalls} | {key: detail.get(key) for key in ("found", "confusion", "mistakes")}


def _short(recall: float | None) -> float | None:
    return None if recall is None else round(recall, 4)
