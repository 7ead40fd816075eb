"""Where samples come from. A source hands out samples by number: shards.py, files.py (a folder a class, a table of captions).

All kinds give the same Item, so that tasks and embeddings never know which one they serve; opening.py opens one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL.Image import Image

Label = str | int | tuple[str | int, ...] | None
"""A class by name or number, several of them for an image of many classes, or none."""


@dataclass(frozen=True)
class Item:
    """One sample. image: RGB, upright; labels: by the `label` key of the tasks, None where the sample has none."""

    name: str  # of the sample, for messages
    image: Image
    captions: tuple[str, ...]
    labels: dict[str, Label]


class Source(Protocol):
    """Samples by number, 0..len-1, in an order that never changes. Called from threads."""

    def __len__(self) -> int: ...

    def item(self, number: int, label_keys: Sequence[str]) -> Item:
        """Read and decode one sample. Raises flexiclip.data.samples.BadSample."""
        ...

    def fingerprint(self) -> str:
        """A hash that changes with the samples, for embeddings that are kept: names and sizes, not where they lie."""
        ...
