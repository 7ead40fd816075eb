"""Sizes by name: big_vision's decode_variant (models/vit.py), and which of a variant's sizes a recipe's own replace."""

from __future__ import annotations

from typing import Any

import pytest

from flexiclip.config import ImageTowerConfig, TextTowerConfig
from flexiclip.errors import UserError
from flexiclip.models.variants import VARIANTS, Shape, shape_of, tower_name

BIG_VISION = {  # width, depth, MLP, heads: decode_variant's four tables
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "So400m": (1152, 27, 4304, 16),
}


@pytest.mark.parametrize("name", BIG_VISION)
def test_shape_of_a_variant_is_big_visions(name: str) -> None:
    width, depth, mlp, heads = BIG_VISION[name]
    for config in (ImageTowerConfig(variant=name), TextTowerConfig(variant=name)):
        assert shape_of(config, "w") == Shape(width, depth, heads, mlp)
    assert tower_name(ImageTowerConfig(variant=name)) == f"FlexiViT-{name}"
    assert VARIANTS.keys() == BIG_VISION.keys()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"variant": "So400m", "depth": 3}, Shape(1152, 3, 16, 4304)),
        ({"variant": "So400m", "width": 1152}, Shape(1152, 27, 16, 4304)),
        (
            {"variant": "So400m", "width": 640},
            Shape(640, 27, 10, 2560),
        ),  # heads of 64, MLP of four times
        ({"variant": "S", "heads": 4, "mlp_dim": 100}, Shape(384, 12, 4, 100)),
        ({"width": 256, "depth": 2}, Shape(256, 2, 4, 1024)),
        ({"width": 48, "depth": 1}, Shape(48, 1, 1, 192)),
        ({"width": 48, "depth": 1, "heads": 6, "mlp_dim": 7}, Shape(48, 1, 6, 7)),
    ],
)
def test_shape_of_sizes_that_are_given(settings: dict[str, Any], expected: Shape) -> None:
    assert shape_of(ImageTowerConfig(**settings), "w") == expected
    assert shape_of(TextTowerConfig(**settings), "w") == expected


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"variant": "XL"}, r"^w\.variant='XL': choose one of Ti, S, B, L, So400m$"),
        ({}, r"^w has no size: give w\.variant"),
        ({"width": 64}, r"^w has no size"),
        ({"width": 64, "depth": 1, "heads": 3}, r"^w\.width=64 is not a multiple of w\.heads=3$"),
    ],
)
def test_shape_of_sizes_that_cannot_be(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        shape_of(ImageTowerConfig(**settings), "w")
    assert tower_name(ImageTowerConfig(width=64, depth=1)) == "FlexiViT-64x1"
