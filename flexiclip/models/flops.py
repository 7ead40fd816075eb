"""Floating point operations of the image tower, counted from its shapes: a multiply-add is 2; norms and activations are left out.

So is the resize of kernel and grid, which a whole batch pays once.
"""

from __future__ import annotations

from flexiclip.config import ImageTowerConfig
from flexiclip.config.schema import Size, pair
from flexiclip.models.variants import shape_of


def image_tower_flops(config: ImageTowerConfig, seqhw: Size, embed_dim: int) -> int:
    """FLOPs to encode one image at grid side `seqhw`, projection to `embed_dim` included (0 for a tower without one)."""
    shape, (gh, gw) = shape_of(config, "model.image"), pair(seqhw)
    width, tokens = shape.width, gh * gw
    height_px, width_px = pair(config.image_size)
    total = 2 * width * 3 * height_px * width_px  # patch embedding: every pixel meets every channel once, at any patch size
    length = tokens + (config.pool == "tok")
    linear = 4 * width * width + 2 * width * shape.mlp_dim
    total += shape.depth * (2 * length * linear + 4 * length * length * width)
    if config.pool == "map":
        total += 2 * length * 2 * width * width + 4 * length * width + 2 * (2 * width * width + 2 * width * shape.mlp_dim)
    return total + (2 * width * embed_dim if config.projection == "linear" else 0)
