"""What the page's script draws, as plain data: curves, choices, cascades, classes, and the images that captions found.

The page is one file for a mail or a web server, so its size has a bound: classes and pictures stop where the bound is reached.
"""

from __future__ import annotations

import json
from typing import Any

from ..choices.length import primary_metric, sentence
from ..rows import TaskInfo
from ..suites.texts import printable
from .gallery import Gallery
from .names import is_share, long_name
from .table import Report, label_of, rows_of

CLASS_BYTES = 1 << 20  # of all classes' recalls; details.json has every one


def page_data(report: Report) -> dict[str, Any]:
    """Models and tasks. A row's `values` follow the task's `metrics`; `model` counts in `models`."""
    labels = [label_of(model) for model in report.models]
    left = CLASS_BYTES
    tasks = []
    for task in report.tasks:
        data = _task(report, task, labels)
        size = len(json.dumps([row["perClass"] for row in data["rows"]]))
        if size > left:
            data["rows"] = [{**row, "perClass": None} for row in data["rows"]]
        else:
            left -= size
        tasks.append(data)
    models = [{"name": label, "trained": model.trained_seqhw} for label, model in zip(labels, report.models, strict=True)]
    return {"models": models, "tasks": tasks, "thumbs": {}}


def add_thumbnails(data: dict[str, Any], gallery: Gallery, room: int) -> None:
    """Fill data["thumbs"], dataset -> record -> base64, caption by caption, every length of one before the next caption.

    room: bytes for all data sets together; captions that find none are taken out of the data.
    """
    tasks = [task for task in data["tasks"] if any(row["found"] for row in task["rows"])]
    for task in tasks:
        share = room // len(tasks)
        thumbs = data["thumbs"].setdefault(task["dataset"], {})
        most = max(len(row["found"] or ()) for row in task["rows"])
        for number in range(most):
            rows = [row["found"] for row in task["rows"] if row["found"] and len(row["found"]) > number]
            wanted = {record for found in rows for record in _records(found[number])} - thumbs.keys()
            new = {record: picture for record in sorted(wanted) if (picture := gallery.thumbnail(task["dataset"], record))}
            share -= sum(len(picture) + 16 for picture in new.values())
            if share < 0:
                for row in task["rows"]:
                    row["found"] = row["found"] and row["found"][:number]
                break
            thumbs.update(new)


def as_script(data: dict[str, Any]) -> str:
    """JSON that may stand inside a script element: no text of a user can end the element or begin a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text = printable(text)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _task(report: Report, task: TaskInfo, labels: list[str]) -> dict[str, Any]:
    rows = rows_of(report, task)
    names = list(rows[0].metrics)
    own = (task.dataset, task.task)
    details = [d for row, d in zip(report.rows, report.details, strict=True) if (row.dataset, row.task) == own]
    choices = [choice for choice in report.choices if (choice.dataset, choice.task) == own]
    return {
        "dataset": task.dataset,
        "task": task.task,
        "metrics": [
            {"key": name, "name": long_name(name), "share": is_share(name), "chance": task.chance.get(name)} for name in names
        ],
        "primary": names.index(primary_metric(rows[0])),
        "classes": list(task.classes),
        "rows": [
            {
                "model": labels.index(label_of(row)),
                "seqhw": row.seqhw,
                "tokens": row.seq_len,
                "patch": row.patch_size,
                "gflops": row.gflops,
                "speed": row.images_per_s,
                "values": [row.metrics.get(name) for name in names],
                "perClass": [_short(detail["per_class"].get(c)) for c in task.classes] if "per_class" in detail else None,
                "found": detail.get("found"),
            }
            for row, detail in zip(rows, details, strict=True)
        ],
        "choices": [{"model": labels.index(label_of(c)), "seqhw": c.seqhw, "text": sentence(c)} for c in choices],
        "cascades": [
            {
                "model": labels.index(label_of(curve)),
                "short": curve.short,
                "long": curve.long,
                "points": [
                    {
                        "k": point.shortlist,
                        "gflops": point.gflops_per_image,
                        "query": point.gflops_per_query,
                        "reranked": point.reranked,
                        "values": [point.metrics.get(name) for name in names],
                    }
                    for point in curve.points
                ],
            }
            for curve in report.cascades
            if (curve.dataset, curve.task) == own
        ],
    }


def _records(found: dict[str, Any]) -> set[int]:
    return {*found["ranked"], *found["positives"][:1]}


def _short(recall: float | None) -> float | None:
    return None if recall is None else round(recall, 4)
