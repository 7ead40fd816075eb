"""Write docs/explanation/benchmarks.md and its plots from the JSON files of the subjects.

python scripts/bench/document.py docs/explanation/benchmarks --output docs/explanation/benchmarks.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flexiclip_eval.report.drawing import LineAxes, draw_lines
from flexiclip_eval.report.table import markdown_table
from side_by_side.record import Goal, digits

ORDER = (
    "training_step",
    "flexible_training",
    "attention",
    "pi_resize",
    "losses",
    "loader",
    "sweep",
    "retrieval_memory",
    "encoders",
    "startup",
    "ranks",
    "growth",
    "compile",
    "gradcache",
)
"""The order of the subjects in the document. Other subjects follow."""

INTRODUCTION = """# Benchmarks

This page compares the speed and the memory of flexiclip with those of other libraries, and with itself where there is no other
library for a subject. [performance.md](../guides/performance.md) says what to set, and why.

`scripts/bench.sh` makes the page. Each subject is a script of `scripts/bench/`. It first checks that both sides give the same
result. Then it runs flexiclip and the real code of the other library in turn (A B A B), on the same work and with the same
threads. Times are medians over rounds. A ratio is the median of the ratios of paired rounds, which other work on the machine
hardly changes.

To run one subject, use `python scripts/bench/SUBJECT.py`. `scripts/bench.sh SUBJECT...` also renews the subject's part of this
page. The records of all subjects are kept in docs/explanation/benchmarks, each with its machine and commit. These are the
machines and versions of all records:
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


def main() -> None:
    """Write the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the JSON files")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    records = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(arguments.folder.glob("*.json"))}
    names = [name for name in ORDER if name in records] + [name for name in records if name not in ORDER]
    found = [records[name] for name in names]
    lines = [INTRODUCTION, *machine_lines(found), "", "## Goals", "", *goals_lines(found)]
    for record in found:
        lines += subject_lines(record, arguments.output.parent / "images")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{arguments.output}: {len(found)} subjects")


if __name__ == "__main__":
    main()
