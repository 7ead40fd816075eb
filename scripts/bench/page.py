"""Writes docs/explanation/benchmarks.md and its plots from the records of the subjects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.bench.record import Goal, digits
from scripts.bench.subjects import SUBJECTS
from scripts.pages import LineAxes, draw_lines, markdown_table

INTRODUCTION = """# Benchmarks

This page compares the speed and the memory of flexiclip with those of other libraries, and with itself where there is no other
library for a subject. [performance.md](../guides/performance.md) says what to set, and why.

`scripts/bench.sh` makes the page. Each subject is a module of `scripts/bench/subjects/`. It first checks that both sides give the
same result. Then it runs flexiclip and the real code of the other library in turn (A B A B), on the same work and with the same
threads. Times are medians over rounds. A ratio is the median of the ratios of paired rounds, which other work on the machine
hardly changes.

To run one subject, use `python -m scripts.bench.subjects.SUBJECT`. `scripts/bench.sh SUBJECT...` also renews the subject's part
of this page. The records of all subjects are kept in docs/explanation/benchmarks, each with its machine and commit. These are
the machines and versions of all records:
"""


def machine_lines(found: Sequence[dict[str, Any]]) -> list[str]:
    """Return lines with the machine, versions and commit. If the subjects differ in these, all values are listed."""
    values: dict[str, list[str]] = {}
    for record in found:
        for key, value in record["machine"].items():
            if value not in values.setdefault(key, []):
                values[key].append(value)
    return [f"- {key}: {', '.join(each)}" for key, each in values.items()]


def goals_lines(found: Sequence[dict[str, Any]]) -> list[str]:
    """Return a table of all goals."""
    rows = []
    for record in found:
        for goal in (Goal(**fields) for fields in record["goals"]):
            sign = "≥" if goal.at_least else "≤"
            verdict = "yes" if goal.holds else "**no**"
            anchor = f"[{record['subject']}](#{record['subject']})"
            rows.append([anchor, goal.what, f"{sign} {digits(goal.wanted)}", digits(goal.found, 4), verdict])
    return markdown_table(["subject", "figure", "goal", "found", "holds"], rows)


def subject_lines(record: dict[str, Any], images: Path) -> list[str]:
    """Return the section of one subject, and draw its plots into the folder `images`."""
    machine = record["machine"]
    lines = ["", f"## {record['subject']}", "", record["about"], ""]
    lines.append(f"`{record['command']}`, at {machine['commit']}, torch {machine['torch']}, {machine['processor']}")
    for table in record["tables"]:
        lines += ["", f"**{table['title']}**", "", *markdown_table(table["columns"], table["rows"])]
    for i, curves in enumerate(record["curves"]):
        name = f"bench_{record['subject']}{'' if i == 0 else f'_{i + 1}'}.png"
        axes = LineAxes(curves["title"], curves["x"], curves["y"], curves["log_x"], curves["log_y"])
        draw_lines(curves["series"], axes, images / name)
        lines += ["", f"![{curves['title']}](images/{name})"]
    for note in record["notes"]:
        lines += ["", note]
    return lines


def write_page(folder: Path, page: Path) -> None:
    """Write the page of all records in `folder`. Its plots go into the folder `images` next to it."""
    records = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    names = [name for name in SUBJECTS if name in records] + [name for name in records if name not in SUBJECTS]
    found = [records[name] for name in names]
    lines = [INTRODUCTION, *machine_lines(found), "", "## Goals", "", *goals_lines(found)]
    for record in found:
        lines += subject_lines(record, page.parent / "images")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
