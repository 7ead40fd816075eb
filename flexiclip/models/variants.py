"""Transformer sizes by name: width, depth, heads and MLP width of big_vision's ViT variants.

The numbers are those of `decode_variant` in big_vision's models/vit.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from flexiclip.config import ImageTowerConfig, TextTowerConfig
from flexiclip.errors import UserError


@dataclass(frozen=True)
class Shape:
    """The size of a transformer: its width, number of blocks, number of heads, and the width inside its MLPs."""

    width: int
    depth: int
    heads: int
    mlp_dim: int


VARIANTS = {
    "Ti": Shape(192, 12, 3, 768),
    "S": Shape(384, 12, 6, 1536),
    "B": Shape(768, 12, 12, 3072),
    "L": Shape(1024, 24, 16, 4096),
    "So400m": Shape(1152, 27, 16, 4304),
}
HEAD_WIDTH = 64


def tower_name(config: ImageTowerConfig) -> str:
    """Return the name of an image tower in results: FlexiViT-B, or FlexiViT-WIDTHxDEPTH if it is not a variant."""
    return f"FlexiViT-{config.variant or f'{config.width}x{config.depth}'}"


def shape_of(config: ImageTowerConfig | TextTowerConfig, where: str) -> Shape:
    """Return the shape of a tower: that of its variant, with explicitly given sizes in place of the variant's.

    `where` names the section of the recipe in errors. Raises UserError for an unknown variant, for a section without a
    size, and for a width that is not a multiple of the number of heads.
    """
    if config.variant is not None and config.variant not in VARIANTS:
        raise UserError(f"{where}.variant={config.variant!r}: choose one of {', '.join(VARIANTS)}")
    base = VARIANTS.get(config.variant or "")
    width = config.width or (base.width if base else None)
    depth = config.depth or (base.depth if base else None)
    if width is None or depth is None:
        raise UserError(
            f"{where} has no size: give {where}.variant ({', '.join(VARIANTS)}) or {where}.width, depth and heads, "
            "or start from a model with init=MODEL"
        )
    own_width = base is not None and width == base.width
    heads = config.heads or (base.heads if base and own_width else max(1, width // HEAD_WIDTH))
    if width % heads:
        raise UserError(f"{where}.width={width} is not a multiple of {where}.heads={heads}")
    return Shape(width, depth, heads, config.mlp_dim or (base.mlp_dim if base and own_width else 4 * width))
