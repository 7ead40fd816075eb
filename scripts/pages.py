"""Makes parts of the pages that scripts write: Markdown tables, plots of lines, and a description of the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from flexiclip_eval.report.drawing import COLOURS, curve, drawn, grid, log_axis, look

LIBRARIES = ("torch", "open_clip_torch", "timm", "clip_benchmark", "webdataset", "onnxruntime", "Pillow")
"""The libraries whose versions describe_machine gives."""

Points = Sequence[Sequence[float]]
"""Pairs of numbers: (x, y), or (lowest, highest)."""


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> list[str]:
    """Return the lines of a Markdown table. The first `left` columns are left-aligned, the others right-aligned."""
    rules = ["---" if i < left else "---:" for i in range(len(columns))]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (columns, rules, *rows)]


@dataclass(frozen=True)
class LineAxes:
    """The title and the axes of a plot of lines."""

    title: str
    x: str  # label of the axis
    y: str  # label of the axis
    log_x: bool = True
    log_y: bool = False
    ticks_at_points: bool = False
    """True: the x axis has a tick at the x of every point. False: its ticks are round numbers."""


def draw_lines(series: Mapping[str, Points], axes: LineAxes, path: Path, ranges: Mapping[str, Points] | None = None) -> None:
    """Draw curves into a PNG file at `path`, whose folder is made if needed.

    series: {label: (x, y) of its points}. ranges: {label: (lowest, highest) at each point}, drawn as a band around the curve.
    """
    figure, ((axis,),) = grid(1, 1, (6.4, 3.6))
    for number, (label, points) in enumerate(series.items()):
        curve(axis, points, number, label, linestyle="-" if number < len(COLOURS) else "--", linewidth=1.5, markersize=5)
        if ranges and label in ranges:
            lowest, highest = zip(*ranges[label], strict=True)
            axis.fill_between([x for x, _ in points], lowest, highest, color=look(number)[0], alpha=0.12, linewidth=0)
    if axes.log_x:
        log_axis(axis)
    if axes.ticks_at_points:
        ticks = sorted({x for points in series.values() for x, _ in points})
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    if axes.log_y:
        axis.set_yscale("log")
    axis.set_xlabel(axes.x)
    axis.set_ylabel(axes.y)
    axis.set_title(axes.title, loc="left", weight="bold", fontsize=10)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(drawn(figure, dpi=110))


def describe_machine() -> dict[str, str]:
    """Describe this machine: processor, cores, memory, system, commit and versions of libraries, each as a short text."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "memory": f"{memory / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "commit": _commit(),
    }
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    lines = dict(line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in lines.items()}
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")
    has = [flag for flag in wanted if flag in fields.get("flags", "").split()]
    return f"{fields.get('model name', platform.machine())} ({', '.join(has) or 'no vector extensions named'})"


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
