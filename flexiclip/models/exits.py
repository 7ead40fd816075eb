"""Early exits of the image tower, and towers that are fixed to one length for an export.

    flexiclip eval runs/NAME runs/NAME+exit2 --suite openmoji
    flexiclip export image runs/NAME+exit2 --format onnx --output image.onnx

Early exits are the flexible depth of FlexiViT, section 7. `leave_after` returns an ordinary model whose image tower ends
at an exit, and which costs what a tower of that depth costs. `bake` resizes the kernel and the grid to one length, so
that the resizes are no longer part of the tower.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor, nn

from flexiclip.config.schema import ImageTowerConfig, Size, pair
from flexiclip.errors import UserError
from flexiclip.models.clip import FlexiCLIP
from flexiclip.models.flexivit import FlexiViT
from flexiclip.models.variants import shape_of


def leave_after(model: FlexiCLIP, depth: int, where: str) -> FlexiCLIP:
    """Return the model with only the first `depth` blocks of its image tower, in eval mode.

    The result shares its parameters with `model`. If the model was trained with separate heads, the exit's own norm, pool
    and projection replace those of the tower. `where` starts the error message. Raises UserError that lists the exits if
    `depth` is not one of them.
    """
    image, tower = model.config.image, model.image_tower
    whole = len(tower.blocks)
    check_exit(image, depth, where)
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


def check_exit(image: ImageTowerConfig, depth: int, where: str) -> None:
    """Raise UserError that lists the exits unless an image tower of this config can be left after block `depth`."""
    whole = shape_of(image, where).depth
    if depth != whole and depth not in image.exits:
        trained = (
            f"its exits are {', '.join(map(str, image.exits))}" if image.exits else "it was trained without model.image.exits"
        )
        raise UserError(f"{where}: the image tower cannot be left after block {depth} of {whole}: {trained}")


class _Baked(nn.Module):
    """Takes the place of a resize whose tensor already has the only size that is needed."""

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Return x as it is, after an assertion that it has the requested size."""
        assert tuple(x.shape[-2:]) == size, "a baked tower knows one length"
        return x


@torch.no_grad()
def bake(tower: FlexiViT, seqhw: Size | None = None) -> FlexiViT:
    """Return a float32 copy of the tower on the CPU, in eval mode, whose kernel and grid have the sizes of one length.

    The length `seqhw` refers to the configured image size; the default is the tower's own. The config of the copy agrees
    with it: base_patch_size, base_grid and default_seqhw are those of this length. Raises UserError that names the valid
    lengths if the length does not divide the image.
    """
    grid = tower.grid_of(tower.image_size, seqhw)
    patch = (tower.image_size[0] // grid[0], tower.image_size[1] // grid[1])
    baked = deepcopy(tower).cpu().float().eval()
    if tower.config.flexible == "stride":  # such a tower uses its kernel unresized
        patch = pair(tower.config.base_patch_size)
    baked.kernel = nn.Parameter(baked.resize_kernel(baked.kernel, patch).contiguous(), requires_grad=False)
    baked.posemb = nn.Parameter(baked.resize_grid(baked.posemb, grid).contiguous(), requires_grad=False)
    baked.add_module("resize_kernel", _Baked())
    baked.add_module("resize_grid", _Baked())
    baked.config = replace(tower.config, base_patch_size=patch, base_grid=grid, default_seqhw=grid, init=None)
    return baked.requires_grad_(False)
