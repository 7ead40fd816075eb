"""docs/benchmarks.md and its plots, out of the JSON files that the subjects' scripts wrote.

python scripts/bench/document.py docs/benchmarks --output docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from flexiclip_eval.report.drawing import COLOURS, INK, MARKERS
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
"""The subjects, as the document has them; others follow."""

INTRODUCTION = """# Benchmarks

`scripts/bench.sh` makes this page: each subject is a script of `scripts/bench/`, which runs flexiclip and its peer's real code in
turn (A B A B) on the same work and the same threads, after it has checked that both give the same result. Times are medians over
rounds; a ratio is the median of the ratios of paired rounds, which a busy machine hardly moves. One subject alone:
`python scripts/bench/SUBJECT.py`, or `scripts/bench.sh SUBJECT...` to renew its part of this page; the records of all are kept in
docs/benchmarks, each with its machine and commit. What to set, and why, is in [performance.md](performance.md).
"""


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table: its first column to the left, the others to the right."""
    rules = ["---", *["---:"] * (len(columns) - 1)]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (columns, rules, *rows)]


def draw(curves: dict[str, Any], path: Path) -> None:
    """A plot of one set of curves."""
    figure, axis = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for i, (label, points) in enumerate(curves["series"].items()):
        style: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "markersize": 5}
        axis.plot([x for x, _ in points], [y for _, y in points], label=label, **style)
    if curves["log_x"]:
        axis.set_xscale("log")
    if curves["log_y"]:
        axis.set_yscale("log")
    axis.set_xlabel(curves["x"])
    axis.set_ylabel(curves["y"])
    axis.set_title(curves["title"], loc="left", weight="bold", fontsize=10, color=INK)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, facecolor="white")
    plt.close(figure)


def machine_lines(found: Sequence[dict[str, Any]]) -> list[str]:
    """The machine and versions; where subjects were measured on different ones or at different commits, all of them."""
    values: dict[str, list[str]] = {}
    for record in found:
        for key, value in record["machine"].items():
            if value not in values.setdefault(key, []):
                values[key].append(value)
    return [f"- {key}: {', '.join(each)}" for key, each in values.items()]


def goals_lines(found: Sequence[dict[str, Any]]) -> list[str]:
    """A table of every goal."""
    rows = []
    for record in found:
        for goal in (Goal(**fields) for fields in record["goals"]):
            sign = "≥" if goal.at_least else "≤"
            verdict = "yes" if goal.holds else "**no**"
            anchor = f"[{record['subject']}](#{record['subject']})"
            rows.append([anchor, goal.what, f"{sign} {digits(goal.wanted)}", digits(goal.found, 4), verdict])
    return markdown_table(["subject", "figure", "goal", "found", "holds"], rows)


def subject_lines(record: dict[str, Any], images: Path) -> list[str]:
    """The section of one subject; its plots are drawn."""
    machine = record["machine"]
    lines = ["", f"## {record['subject']}", "", record["about"], ""]
    lines.append(f"`{record['command']}`, at {machine['commit']}, torch {machine['torch']}, {machine['processor']}")
    for table in record["tables"]:
        lines += ["", f"**{table['title']}**", "", *markdown_table(table["columns"], table["rows"])]
    for i, curves in enumerate(record["curves"]):
        name = f"bench_{record['subject']}{'' if i == 0 else f'_{i + 1}'}.png"
        draw(curves, images / name)
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
