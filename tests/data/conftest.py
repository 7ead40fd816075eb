"""Shards and a loader for the tests of the data floor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from kit.shards import good_sample, word_tokenizer, write_samples

from flexiclip.config import DataConfig


@pytest.fixture
def uneven(tmp_path: Path) -> str:
    """23 samples in shards of 1, 9, 2, 11; the brace spec of them."""
    start = 0
    for shard, count in enumerate((1, 9, 2, 11)):
        write_samples(tmp_path / f"train-{shard:04d}.tar", [good_sample(n) for n in range(start, start + count)])
        start += count
    return str(tmp_path / "train-{0000..0003}.tar")


@pytest.fixture
def broken(tmp_path: Path) -> str:
    """12 samples, three of them bad: s0002 (a JPEG cut short), s0005 (an empty caption), s0007 (no image)."""
    samples = [good_sample(n) for n in range(12)]
    samples[2]["jpg"] = samples[2]["jpg"][:300]
    samples[5]["txt"] = b"  \n"
    del samples[7]["jpg"]
    return str(write_samples(tmp_path / "broken.tar", samples))


@pytest.fixture
def loader_of() -> Callable[..., Any]:
    """train_loader with small defaults; any field of its arguments, and any key of DataConfig, by name."""
    from flexiclip.data.batch import BatchSpec, RankSteps
    from flexiclip.data.loader import train_loader
    from flexiclip.models.text.base import TrimmingTokenizer

    def make(train: Any, **given: Any) -> Any:
        keys = {"workers": 0, "prefetch": 2, "window_shards": 2} | {
            k: given.pop(k) for k in list(given) if hasattr(DataConfig, k)
        }
        defaults: dict[str, Any] = {
            "image_size": (16, 16),
            "interpolation": "bilinear",
            "tokenizer": TrimmingTokenizer(word_tokenizer, pad_id=0),
            "seed": 3,
            "global_batch_size": 6,
            "start_step": 0,
            "steps": 4,
        }
        given = {**defaults, **given}
        spec = BatchSpec(**{field.name: given.pop(field.name) for field in fields(BatchSpec) if field.name in given})
        return train_loader(DataConfig(train=train, **keys), spec, sources=given.pop("sources", None), steps=RankSteps(**given))

    return make
