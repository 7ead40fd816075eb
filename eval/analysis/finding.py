"""What an analysis leaves: a sentence, numbers for analysis.json, a table and pictures for report.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """Cells as texts; the first column names the line."""

    headings: Sequence[str]
    lines: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Finding:
    """One analysis of one model."""

    title: str
    method: str  # how it is measured, and whose method it is
    sentence: str  # what came out
    numbers: dict[str, Any]  # plain data, finite
    table: Table
    figures: dict[str, Figure]  # name of the file, less its ending
    captions: dict[str, str]  # of the figures, by the same names


@dataclass(frozen=True)
class Bias:
    """What a model answers at one length: shares in 0..1 of the images; the bias is one of the answers that are either cue."""

    images: int
    shape: float
    texture: float
    bias: float | None  # None where no answer is either cue
    nearer: float  # to the shape's words than to the texture's, whatever is nearest of all
    by_shape: dict[str, float | None]  # the bias over the images of a shape
