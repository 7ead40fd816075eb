"""Real shards, written by webdataset: each image holds its own number in its pixels, each caption in its words."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(number: int, size: tuple[int, int] = (24, 20)) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return encode(Image.fromarray(pixels), "JPEG", quality=95)


def write_samples(path: Path, samples: Sequence[dict[str, Any]]) -> Path:
    with webdataset.TarWriter(str(path), encoder=False, mtime=0) as writer:
        for sample in samples:
            writer.write(sample)
    return path


def good_sample(number: int) -> dict[str, Any]:
    return {"__key__": f"s{number:04d}", "jpg": jpeg(number), "txt": f"caption number {number}".encode()}


def word_tokenizer(texts: list[str]) -> torch.Tensor:
    """Length of each word, 0-padded to 8: [N, 8]."""
    rows = [([len(word) for word in text.split()] + [0] * 8)[:8] for text in texts]
    return torch.tensor(rows, dtype=torch.int64)
