"""Shards to train on: three of unequal size, written by webdataset, of 48-pixel images whose colours captions and labels name."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from PIL import Image

COLOURS = {"red": (220, 30, 40), "green": (40, 190, 70), "blue": (40, 70, 220), "yellow": (230, 210, 50), "grey": (120, 120, 120)}
THINGS = ("square", "disc", "stripe", "cross")
SIZES = (37, 11, 48)
SAMPLES = sum(SIZES)


def sample(number: int) -> dict[str, Any]:
    """A noisy field of one colour with a patch of another, whose colour is the class; a caption that tells all samples apart."""
    rng = np.random.default_rng(number)
    names = list(COLOURS)
    ground, figure = names[number % 5], names[(number // 5 + number % 5 + 1) % 5]
    pixels = np.tile(np.array(COLOURS[ground], dtype=np.int64), (48, 48, 1)) + rng.integers(-20, 20, (48, 48, 3))
    top, left = rng.integers(0, 30, 2)
    pixels[top : top + 18, left : left + 18] = COLOURS[figure]
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    caption = f"a {figure} {THINGS[number % 4]} number {number} on {ground}"
    return {"__key__": f"s{number:04d}", "png": buffer.getvalue(), "txt": caption.encode(), "cls": figure.encode()}


def write_shard(path: Path, samples: Sequence[dict[str, Any]]) -> str:
    """One tar of samples; the bytes are the same every time."""
    with webdataset.TarWriter(str(path), encoder=False, mtime=0) as writer:
        for each in samples:
            writer.write(each)
    return str(path)


def write_uneven(folder: Path) -> str:
    """The three shards; the brace range that names them."""
    start = 0
    for shard, count in enumerate(SIZES):
        write_shard(folder / f"train-{shard:04d}.tar", [sample(n) for n in range(start, start + count)])
        start += count
    return str(folder / "train-{0000..0002}.tar")
