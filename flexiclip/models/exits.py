"""Flexible depth (FlexiViT, section 7): a model whose image tower is left after some of its blocks.

    flexiclip eval runs/NAME runs/NAME+exit2 --suite openmoji
    flexiclip export image runs/NAME+exit2 --format onnx --output image.onnx

What comes out is an ordinary model with a tower of that depth, and costs what such a tower costs.
"""

from __future__ import annotations

import re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from flexiclip.config.schema import Size, pair
from flexiclip.errors import UserError
from flexiclip.models.clip import FlexiCLIP
from flexiclip.models.flexivit import FlexiViT


def split_exit(source: str) -> tuple[str, int | None]:
    """`A+exit2` -> ("A", 2); (source, None) without the ending, and for a path that exists."""
    match = re.fullmatch(r"(.+)\+exit(\d{1,4})", source)
    return (match[1], int(match[2])) if match and not Path(source).exists() else (source, None)


def leave_after(model: FlexiCLIP, depth: int, where: str) -> FlexiCLIP:
    """The model with the first `depth` blocks of its image tower, in eval mode; it shares its parameters with `model`.

    The exit's own norm, pool and projection take the place of the tower's where the model was trained with such. Raises
    UserError that lists the exits.
    """
    image, tower = model.config.image, model.image_tower
    whole = len(tower.blocks)
    if depth != whole and depth not in image.exits:
        trained = (
            f"its exits are {', '.join(map(str, image.exits))}" if image.exits else "it was trained without model.image.exits"
        )
        raise UserError(f"{where}: the image tower cannot be left after block {depth} of {whole}: {trained}")
    section = replace(image, depth=depth, exits=(), exit_heads="shared", init=None)
    with torch.device("meta"):
        left = FlexiCLIP(replace(model.config, image=section), model.text_tower)
    shorter, projection = left.image_tower, model.image_projection
    shorter.load_state_dict(
        {name: p for name, p in tower.state_dict(keep_vars=True).items() if name in shorter.state_dict()}, assign=True
    )
    if depth != whole:
        shorter.norm, shorter.map_head = tower.exit_head(depth)
        projection = model.exit_projection(depth)
    left.image_projection, left.text_projection = projection, model.text_projection
    left.logit_scale, left.logit_bias = model.logit_scale, model.logit_bias
    return left.to(model.logit_scale.device).eval()


class _Baked(nn.Module):
    """Stands where a resize was; the tensor has its only size already."""

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        assert tuple(x.shape[-2:]) == size, "a baked tower knows one length"
        return x


@torch.no_grad()
def bake(tower: FlexiViT, seqhw: Size | None = None) -> FlexiViT:
    """A copy of the tower, in eval mode on the CPU, whose kernel and grid are those of one length of its configured image size.

    Its config says so: base_patch_size, base_grid and default_seqhw are this length's. Raises UserError that names the valid
    lengths when the image does not divide.
    """
    grid = tower.grid_of(tower.image_size, seqhw)
    patch = (tower.image_size[0] // grid[0], tower.image_size[1] // grid[1])
    baked = deepcopy(tower).cpu().float().eval()
    if tower.config.flexible == "stride":  # whose kernel has one size
        patch = pair(tower.config.base_patch_size)
    baked.kernel = nn.Parameter(baked.resize_kernel(baked.kernel, patch).contiguous(), requires_grad=False)
    baked.posemb = nn.Parameter(baked.resize_grid(baked.posemb, grid).contiguous(), requires_grad=False)
    baked.add_module("resize_kernel", _Baked())
    baked.add_module("resize_grid", _Baked())
    baked.config = replace(tower.config, base_patch_size=patch, base_grid=grid, default_seqhw=grid, init=None)
    return baked.requires_grad_(False)
