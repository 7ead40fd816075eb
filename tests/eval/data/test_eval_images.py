"""What the names of kept images depend on: what a transform makes of them, samples, captions and labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flexiclip_eval.data.images import ImageBlock, transform_fingerprint
from flexiclip_eval.suites.dataset import DatasetConfig
from flexiclip_eval.suites.load import load_datasets
from kit.evaluation import toys, write_shards, write_suite
from open_clip.transform import image_transform


def brighter(by: float) -> Callable[[Any], torch.Tensor]:
    """Functions that say the same of themselves."""
    plain = image_transform(24, is_train=False)
    return lambda image: plain(image) + by


@pytest.fixture
def suite(tmp_path: Path) -> str:
    return write_suite(tmp_path / "toys.yaml", write_shards(tmp_path / "data", toys(9), (9,)))


def test_transform_fingerprint_knows_what_pictures_become() -> None:
    transforms = [
        image_transform(24, is_train=False),
        image_transform(25, is_train=False),
        image_transform(24, is_train=False, mean=(0.5, 0.5, 0.5)),
        image_transform(24, is_train=False, std=(0.5, 0.5, 0.5)),
        image_transform(24, is_train=False, resize_mode="squash", interpolation="bicubic"),
        image_transform(24, is_train=False, interpolation="bilinear"),
        brighter(0.0),
        brighter(0.01),
        lambda image: brighter(0.0)(image).half(),
    ]
    assert len({transform_fingerprint(transform) for transform in transforms}) == len(transforms)
    assert transform_fingerprint(image_transform(24, is_train=False)) == transform_fingerprint(transforms[0])
    assert transform_fingerprint(brighter(0.01)) == transform_fingerprint(transforms[7])


def test_image_block_fingerprint_knows_samples_captions_and_labels(suite: str, tmp_path: Path) -> None:
    (config,) = load_datasets([suite])
    transform = image_transform(24, is_train=False)

    def fingerprint(config: DatasetConfig) -> str:
        return ImageBlock(config, transform, workers=1, cache_bytes=0).fingerprint

    known = fingerprint(config)
    assert fingerprint(replace(config, name="other", language="de")) == known
    other_labels = tuple(replace(task, label="cls") if task.label else task for task in config.tasks)
    for changed in (
        replace(config, captions=("json:choice",)),
        replace(config, image_keys=("png",)),
        replace(config, tasks=other_labels),
        replace(config, tasks=config.tasks[:1]),
    ):
        assert fingerprint(changed) != known
