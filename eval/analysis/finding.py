"""The result of an analysis: a sentence, numbers for analysis.json, a table and pictures for report.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """Cells as texts; the first column names the row."""

    headings: Sequence[str]
    lines: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Finding:
    """The result of one analysis of one model."""

    title: str
    method: str  # how it is measured, with the paper
    sentence: str  # the result in words
    numbers: dict[str, Any]  # plain data, finite
    table: Table
    figures: dict[str, Figure]  # by the name of the file without its ending
    captions: dict[str, str]  # for the figures, by the same names


@dataclass(frozen=True)
class Bias:
    """The answers of a model at one length. Shares are of the images; `bias` is a share of the answers that are either cue."""

    images: int
    shape: float
    texture: float
    bias: float | None  # None if no answer is either cue
    nearer: float  # images nearer to the words of the shape than to those of the texture, whichever class is nearest
    by_shape: dict[str, float | None]  # the bias for the images of each shape
