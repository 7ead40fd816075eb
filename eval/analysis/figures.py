"""Renders the results of the analyses: the page report.html and its pictures, in the style of the other reports.

The page has one section per analysis, with its sentence, pictures, table and method (report/page_data.py has the frame). The
pictures use the colours and axes of report/drawing.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from flexiclip_eval.analysis.subject import Finding, Table
from flexiclip_eval.report.drawing import INK, gflops_axis, grid, look
from flexiclip_eval.report.page_data import PAGE_BYTES, fill, frame, inline_pictures
from flexiclip_eval.report.table import brief
from torch import Tensor

if TYPE_CHECKING:
    from flexiclip_eval.analysis.subject import Bias
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def render_findings(findings: Sequence[Finding], about: Mapping[str, Any], pictures: Mapping[str, Path]) -> str:
    """Return the page. pictures: PNG files by the names of the findings' figures."""
    lengths = ", ".join(str(length["seqhw"]) for length in about["lengths"])
    bad = f" {len(about['bad_samples'])} of the images drawn could not be read." if about["bad_samples"] else ""
    links = (f'<a href="#finding-{i}">{escape(each.title)}</a>' for i, each in enumerate(findings))
    room = PAGE_BYTES // max(1, len(pictures))
    sections = "\n".join(_section(i, each, pictures, room) for i, each in enumerate(findings))
    return frame(
        fill("findings.html", {"sections": sections, "command": escape(about["command"])}),
        title=f"{about['model']} {about['pretrained']}".strip(),
        lead=f"{about['images']} images of {', '.join(about['suites'])} at seqhw {lengths}.{bad}",
        contents=" ".join((*links, '<a href="#command">Command</a>')),
    )


def _section(number: int, finding: Finding, pictures: Mapping[str, Path], room: int) -> str:
    shown = [
        f'<p class="note">{escape(finding.captions[name])}</p>{inline_pictures([(pictures[name], finding.captions[name])], room)}'
        for name in finding.figures
    ]
    return (
        f'<section id="finding-{number}"><h2>{escape(finding.title)}</h2><p>{escape(finding.sentence)}</p>'
        f'<div class="pictures">{"".join(shown)}</div><div class="scroll">{_table(finding.table)}</div>'
        f'<p class="note">{escape(finding.method)}</p></section>'
    )


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in table.headings)
    lines = (
        f'<tr><th scope="row">{escape(line[0])}</th>{"".join(f"<td>{escape(text)}</td>" for text in line[1:])}</tr>'
        for line in table.lines
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


PANEL = 1.35  # side of a small picture, in inches
_LEGEND: Any = {"frameon": False, "loc": "upper left", "bbox_to_anchor": (1.01, 1), "borderaxespad": 0, "fontsize": 9}


def cka(matrix: np.ndarray, lengths: Sequence[int], layers: Sequence[str]) -> Figure:
    """Draw the CKA. matrix: [P, P], P = lengths x layers, in -1..1; NaN is left white."""
    figure, ((left, right),) = grid(1, 2, (13.0, 5.2))
    count = len(layers)
    shown = left.imshow(matrix, vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    middles = [(at + 0.5) * count - 0.5 for at in range(len(lengths))]
    names = [str(length) for length in lengths]
    left.set_xticks(middles, names)
    left.set_yticks(middles, names)
    for at in range(1, len(lengths)):
        left.axhline(at * count - 0.5, color="white", linewidth=0.8)
        left.axvline(at * count - 0.5, color="white", linewidth=0.8)
    left.set_xlabel("seqhw; inside each, layers from the stem outwards")
    left.set_ylabel("seqhw")
    left.set_title("CKA of all layers and lengths", loc="left", fontsize=10)
    figure.colorbar(shown, ax=left, shrink=0.85)
    for at, length in enumerate(lengths[:-1]):
        colour, marker = look(at)
        last = (len(lengths) - 1) * count
        values = [matrix[at * count + layer, last + layer] for layer in range(count)]
        right.plot(range(count), values, marker=marker, color=colour, linewidth=2, markersize=4.5, label=f"seqhw {length}")
    right.set_xticks(range(count), layers, rotation=60, ha="right", fontsize=8)
    right.set_ylim(top=1.03)
    right.set_title(f"the same layer at seqhw {lengths[-1]}", loc="left", fontsize=10)
    right.set_ylabel("CKA")
    right.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    right.legend(**_LEGEND)
    return figure


def attention(images: Tensor, texts: Sequence[str | None], heats: Sequence[Sequence[Tensor]], lengths: Sequence[int]) -> Figure:
    """Draw one row per image: the image with its text, then its relevance map at each length. images: uint8 [n, 3, H, W]."""
    figure, axes = _pictures(images, lengths)
    for line, text, maps in zip(axes, texts, heats, strict=True):
        line[0].set_ylabel(brief(text or "", 24), fontsize=8)
        for axis, heat in zip(line[1:], maps, strict=True):
            _over(axis, heat, images.shape[2:], cmap="inferno", vmin=0)
    return figure


def tokens(
    images: Tensor, maps: Sequence[Sequence[Tensor]], lengths: Sequence[int], seed_at: int, seed: tuple[float, float]
) -> Figure:
    """Draw one row per image: the image with the place of the seed, then the seed's cosine with every token at each length.

    All maps have the same scale.
    """
    figure, axes = _pictures(images, lengths)
    height, width = images.shape[2:]
    low = min(float(m.min()) for line in maps for m in line)
    for line, each in zip(axes, maps, strict=True):
        middle = [(int(part * seed_at + 1e-9) + 0.5) / seed_at for part in seed]
        line[0].plot(middle[1] * width, middle[0] * height, "x", color="#D55E00", markersize=9, markeredgewidth=2.5)
        for axis, values in zip(line[1:], each, strict=True):
            shown = _over(axis, values, (height, width), cmap="viridis", vmin=low, vmax=1)
    figure.colorbar(shown, ax=[axis for line in axes for axis in line], shrink=0.6, label="cosine")
    return figure


def ensembles(singles: Sequence[tuple[float, float]], several: Sequence[tuple[float, float]], title: str, metric: str) -> Figure:
    """Draw a metric against GFLOPs: the curve of the single lengths, in ascending order, and one point per ensemble."""
    from matplotlib.ticker import PercentFormatter

    figure, ((axis,),) = grid(1, 1, (8.4, 4.4))
    line: Any = {"linewidth": 2, "markersize": 5.5, "zorder": 3}
    points: Any = {"markersize": 4, "alpha": 0.7}
    axis.plot([x for x, _ in singles], [y for _, y in singles], "o-", color=look(0)[0], label="one length", **line)
    axis.plot([x for x, _ in several], [y for _, y in several], "D", color=look(1)[0], label="mean over lengths", **points)
    gflops_axis(axis)
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axis.set_ylabel(metric)
    axis.set_title(title, loc="left", weight="bold", pad=10)
    axis.legend(**_LEGEND)
    return figure


def cue_conflict(found: Mapping[int, Bias]) -> Figure:
    """Draw the shape bias, and the shares of the answers that are the shape or the texture, against the length."""
    from matplotlib.ticker import NullLocator, PercentFormatter

    figure, ((axis,),) = grid(1, 1, (8.4, 4.2))
    known = [(length**2, bias.bias) for length, bias in found.items() if bias.bias is not None]
    curves = {
        "shape bias": known,
        "answers: shape": [(length**2, bias.shape) for length, bias in found.items()],
        "answers: texture": [(length**2, bias.texture) for length, bias in found.items()],
        "shape, of the two alone": [(length**2, bias.nearer) for length, bias in found.items()],
    }
    for number, (label, points) in enumerate(curves.items()):
        colour, marker = look(number)
        xs, values = [x for x, _ in points], [value for _, value in points]
        style: Any = {"linewidth": 2.5 if number == 0 else 1.5, "linestyle": "-" if number == 0 else "--"}
        axis.plot(xs, values, marker=marker, color=colour, markersize=5.5, label=label, clip_on=False, zorder=3, **style)
    axis.axhline(0.5, linestyle=":", color=INK, linewidth=1.2)
    axis.set_xscale("log", base=2)
    axis.set_xticks([length**2 for length in found], [str(length**2) for length in found])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("tokens an image")
    axis.set_ylim(0, 1)
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axis.legend(**_LEGEND)
    return figure


def _pictures(images: Tensor, lengths: Sequence[int]) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure with one row per image, the image in the first column, and one column per length with its seqhw on top."""
    figure, axes = grid(len(images), 1 + len(lengths), (PANEL * (1 + len(lengths)) + 0.6, PANEL * len(images) + 0.4))
    for line, image in zip(axes, images, strict=True):
        for axis in line:
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
        line[0].imshow(image.permute(1, 2, 0).numpy())
    for axis, length in zip(axes[0][1:], lengths, strict=True):
        axis.set_title(f"seqhw {length}", fontsize=9)
    return figure, axes


def _over(axis: Axes, values: Tensor, size: Sequence[int], **style: Any) -> Any:
    """Draw values [g, h] over the area of an image of (height, width) pixels, one cell per token."""
    height, width = size
    return axis.imshow(values.numpy(), extent=(0, width, height, 0), interpolation="nearest", **style)
