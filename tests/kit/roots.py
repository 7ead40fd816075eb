"""Data sets in the layout of CLIP_benchmark."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import webdataset

from kit.evaluation import toys


def png(number: int) -> bytes:
    """The image of a toy as a PNG file."""
    data = io.BytesIO()
    toys(number + 1)[number].image.save(data, "PNG")
    return data.getvalue()


def write_root(
    root: Path, kind: str, split: str = "test", shards: tuple[int, ...] = (2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
) -> Path:
    """CLIP_benchmark's layout, twelve shards: sorted as text, 10.tar would come before 2.tar."""
    (root / split).mkdir(parents=True)
    number = 0
    for shard, count in enumerate(shards):
        with webdataset.TarWriter(str(root / split / f"{shard}.tar"), encoder=False, mtime=0) as writer:
            for _ in range(count):
                sample: dict[str, Any] = {"__key__": f"s{number:07d}", "png": png(number)}
                vector = io.BytesIO()
                np.save(vector, np.array([number % 2, 1, 0], dtype=np.int64))
                sample |= {
                    "retrieval": {"txt": f"thing {number}\nseen {number}".encode()},
                    "multilabel": {"npy": vector.getvalue()},
                }.get(kind, {"cls": str(number % 3).encode()})
                writer.write(sample)
                number += 1
    (root / split / "nshards.txt").write_text(f"{len(shards)}\n")
    if kind != "classification":
        (root / "dataset_type.txt").write_text(kind + "\n")
    if kind != "retrieval":
        (root / "classnames.txt").write_text("animals\nflags\nfood\n")
        (root / "zeroshot_classification_templates.txt").write_text("a photo of {c}\n{c}\n")
    return root
