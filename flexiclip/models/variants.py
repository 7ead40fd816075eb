"""Transformer sizes by name: width, depth, heads and MLP width of big_vision's ViT variants (models/vit.py, decode_variant)."""

from __future__ import annotations

from dataclasses import dataclass

from flexiclip.config import ImageTowerConfig, TextTowerConfig
from flexiclip.errors import UserError


@dataclass(frozen=True)
class Shape:
    """The size of a transformer."""

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
    """What results call an image tower: FlexiViT-B, or width x depth where it is no variant."""
    return f"FlexiViT-{config.variant or f'{config.width}x{config.depth}'}"


def shape_of(config: ImageTowerConfig | TextTowerConfig, where: str) -> Shape:
    """The tower's shape: the variant's, with the sizes that are given in their place. `where` names the section in errors."""
    if config.variant is not None and config.variant not in VARIANTS:
        raise UserError(f"{where}.variant={config.variant!r}: choose one of {', '.join(VARIANTS)}")
    base = VARIANTS.get(config.variant or "")
    width = config.width or (base.width if base else None)
    depth = config.depth or (base.depth if base else None)
    if width is None or depth is None:
        raise UserError(f"{where} has no size: give {where}.variant ({', '.join(VARIANTS)}) or {where}.width, depth and heads")
    own_width = base is not None and width == base.width
    heads = config.heads or (base.heads if base and own_width else max(1, width // HEAD_WIDTH))
    if width % heads:
        raise UserError(f"{where}.width={width} is not a multiple of {where}.heads={heads}")
    return Shape(width, depth, heads, config.mlp_dim or (base.mlp_dim if base and own_width else 4 * width))
