"""A cascade: captions rank the images by short embeddings, and long ones re-rank the first K. One model, no extra training.

    flexiclip eval MODEL --suite S --cascade 5:15

What it costs is counted in GFLOPs of the image tower, the text tower being the same at every length:

- `gflops_per_image`, of a gallery image when all captions of the data set are asked once and long embeddings are kept: the short
  length for every image, and the long one for those that stand in ANY caption's shortlist. At K = 0 that is the short length
  alone; at large K it is MORE than the long length alone, which needs no short pass. A cascade pays below that.
- `gflops_per_query`: K times the long length, what one more caption adds when no long embedding has been kept. The short
  embeddings of the gallery are not in it: they are the index, made once.

Captions that are searched with an image gain nothing: the only image to encode is the query, and it would be encoded twice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from flexiclip.errors import UserError

SHORTLISTS = (5, 10, 20, 50, 100, 200, 500, 1000)
"""The K of a curve, as far as the gallery reaches; 0 and the whole gallery, the two lengths alone, are its ends."""


@dataclass(frozen=True)
class CascadePoint:
    """A cascade at one K."""

    shortlist: int
    """K, the images that are re-ranked; 0 is the short length alone, the size of the gallery the long one alone."""
    metrics: dict[str, float]
    """image_retrieval_recall@k in 0..1."""
    reranked: float
    """Share of the gallery that stands in any caption's shortlist."""
    gflops_per_image: float | None
    """See the module; None where the model's cost is unknown. At the last point the long length alone, without a short pass."""
    gflops_per_query: float | None


@dataclass(frozen=True)
class CascadeCurve:
    """Recall against the compute of one (short, long) pair of lengths, in the order of K."""

    dataset: str
    task: str
    model: str
    pretrained: str
    short: int  # seqhw
    long: int
    points: tuple[CascadePoint, ...]


@dataclass(frozen=True)
class Reranked:
    """What re-ranking K images gave, before it is priced. reranked: see CascadePoint."""

    shortlist: int
    metrics: dict[str, float]
    reranked: float


def parse_cascade(text: str) -> tuple[int, int]:
    """`5:15` -> (5, 15), the short and the long seqhw. Raises UserError."""
    match = re.fullmatch(r"([0-9]{1,4}):([0-9]{1,4})", text.strip())
    if match is None or not 0 < int(match[1]) < int(match[2]):
        raise UserError(f"--cascade {text!r}: write SHORT:LONG, two of the lengths evaluated, for example 5:15")
    return int(match[1]), int(match[2])


def cascade_pair(lengths: Sequence[int | None], wanted: tuple[int, int] | None) -> tuple[int, int] | None:
    """(short, long) of the lengths evaluated: those wanted, else the shortest and the longest; None for a single length.

    Raises UserError when a wanted length is not evaluated.
    """
    known = sorted(length for length in lengths if length is not None)
    if wanted is not None and not set(wanted) <= set(known):
        raise UserError(
            f"--cascade {wanted[0]}:{wanted[1]}: both must be evaluated; --seqhw is {','.join(map(str, known)) or 'one'}"
        )
    if wanted is not None:
        return wanted
    return (known[0], known[-1]) if len(known) > 1 else None


def shortlists(gallery: int) -> list[int]:
    """The K of a curve over `gallery` images: 0, the steps of SHORTLISTS, and all of them."""
    return [0, *(k for k in SHORTLISTS if k < gallery), gallery]


def priced(found: Sequence[Reranked], gallery: int, short: float | None, long: float | None) -> tuple[CascadePoint, ...]:
    """The points of a curve. short, long: GFLOPs of an image at the two lengths; None where they are unknown."""
    points = []
    for each in found:
        per_image = per_query = None
        if short is not None and long is not None:
            alone = each.shortlist >= gallery
            per_image = long if alone else short + each.reranked * long
            per_query = each.shortlist * long
        points.append(CascadePoint(each.shortlist, each.metrics, each.reranked, per_image, per_query))
    return tuple(points)
