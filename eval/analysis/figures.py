"""Renders the results of the analyses: the page report.html, and pictures of maps over images.

The page has one section per analysis, with its sentence, pictures, table and method (report/page_data.py has the frame).
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from flexiclip_eval.analysis.subject import Finding, Table
from flexiclip_eval.report.drawing import grid
from flexiclip_eval.report.page_data import PAGE_BYTES, fill, frame, inline_pictures
from flexiclip_eval.report.table import brief
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage


def render_findings(findings: Sequence[Finding], folder: Path, *, title: str, lead: str, command: str) -> str:
    """Return the page. folder: has the figures of the findings as PNG files of their names. lead: a line below the title."""
    links = (f'<a href="#finding-{i}">{escape(each.title)}</a>' for i, each in enumerate(findings))
    room = PAGE_BYTES // max(1, sum(len(each.figures) for each in findings))  # bytes per picture
    sections = "\n".join(_section(i, each, folder, room) for i, each in enumerate(findings))
    return frame(
        fill("findings.html", {"sections": sections, "command": escape(command)}),
        title=title,
        lead=lead,
        contents=" ".join((*links, '<a href="#command">Command</a>')),
    )


def _section(number: int, finding: Finding, folder: Path, room: int) -> str:
    shown = [
        f'<p class="note">{escape(caption)}</p>{inline_pictures([(folder / f"{name}.png", caption)], room)}'
        for name, (_, caption) in finding.figures.items()
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


def attention(images: Tensor, texts: Sequence[str | None], heats: Sequence[Sequence[Tensor]], lengths: Sequence[int]) -> Figure:
    """Draw one row per image: the image with its text, then its relevance map at each length. images: uint8 [n, 3, H, W]."""
    figure, axes = _pictures(images, lengths)
    for line, text, maps in zip(axes, texts, heats, strict=True):
        line[0].set_ylabel(brief(text or "", 24), fontsize=8)
        for axis, heat in zip(line[1:], maps, strict=True):
            _over(axis, heat, images, "inferno", (0, None))
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
    down, right = ((int(part * seed_at + 1e-9) + 0.5) / seed_at for part in seed)
    for line, each in zip(axes, maps, strict=True):
        line[0].plot(right * width, down * height, "x", color="#D55E00", markersize=9, markeredgewidth=2.5)
        for axis, values in zip(line[1:], each, strict=True):
            shown = _over(axis, values, images, "viridis", (low, 1))
    figure.colorbar(shown, ax=[axis for line in axes for axis in line], shrink=0.6, label="cosine")
    return figure


def _pictures(images: Tensor, lengths: Sequence[int]) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure with one row per image, the image in the first column, and one column per length with its seqhw on top."""
    figure, axes = grid(len(images), 1 + len(lengths), (PANEL * (1 + len(lengths)) + 0.6, PANEL * len(images) + 0.4))
    for line, image in zip(axes, images, strict=True):
        for axis in line:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        line[0].imshow(image.permute(1, 2, 0).numpy())
    for axis, length in zip(axes[0][1:], lengths, strict=True):
        axis.set_title(f"seqhw {length}", fontsize=9)
    return figure, axes


def _over(axis: Axes, values: Tensor, images: Tensor, colours: str, limits: tuple[float, float | None]) -> AxesImage:
    """Draw values [g, h] over the area of an image, one cell per token. limits: the values at the ends of the colour map."""
    height, width = images.shape[2:]
    low, high = limits
    return axis.imshow(values.numpy(), cmap=colours, vmin=low, vmax=high, extent=(0, width, height, 0), interpolation="nearest")
