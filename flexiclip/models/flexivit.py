"""FlexiViT (Beyer et al., arXiv 2212.08013): an image tower with one set of weights for every patch size.

The parameters are a large patch embedding kernel (32x32) and a small position grid (7x7). Each forward pass resizes both
to the requested length: the kernel by PI-resize, and the grid by an ordinary antialiased resize. Nothing else depends on
the length, and no module stores it: `seqhw` is passed as an argument.

Two of the paper's alternatives (section 7) are settings of the same tower. With flexible=stride the kernel keeps its size
and moves by one cell of the grid, so patches overlap. With `exits` the tower can also be left after some of its blocks
(exits.py).

`rebase` changes the base sizes of a tower's weights, which is how a student starts from a tower of one patch size.

Shapes: B batch, [H, W] image, [gh, gw] grid (seqhw), [p, q] = [H / gh, W / gw] patch, N = gh * gw tokens, D width.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flexiclip.config import ImageTowerConfig
from flexiclip.config.schema import Size, pair, sides
from flexiclip.config.validate import valid_seqhw
from flexiclip.errors import UserError
from flexiclip.models.pi_resize import AxisResize, interpolation_matrix, pi_matrix, pi_resize, resize_axes
from flexiclip.models.transformer import Block, MAPHead, init_weights
from flexiclip.models.variants import shape_of

State = dict[str, Tensor]


class FlexiViT(nn.Module):
    """The image tower, which maps images to pooled features; the projection into the joint space is not part of it."""

    def __init__(self, config: ImageTowerConfig) -> None:
        super().__init__()
        self.config = config
        shape = shape_of(config, "model.image")
        self.width = shape.width
        self.image_size = pair(config.image_size)
        kernel_size, grid = pair(config.base_patch_size), pair(config.base_grid)
        self.kernel = nn.Parameter(torch.empty(shape.width, 3, *kernel_size))
        self.bias = nn.Parameter(torch.zeros(shape.width)) if config.patch_bias else None
        self.posemb = nn.Parameter(torch.empty(1, shape.width, *grid))
        self.cls = nn.Parameter(torch.zeros(1, 1, shape.width)) if config.pool == "tok" else None
        self.norm_pre = nn.LayerNorm(shape.width, eps=config.norm_eps) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(shape, config.activation, config.norm_eps) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, eps=config.norm_eps)
        self.map_head = MAPHead(shape, config.activation, config.norm_eps) if config.pool == "map" else None
        if max(config.exits, default=0) >= shape.depth:
            raise UserError(
                f"model.image.exits={list(config.exits)} must lie before the last of the tower's {shape.depth} blocks"
            )
        separate = config.exits if config.exit_heads == "separate" else ()
        self.exit_norms = nn.ModuleList(nn.LayerNorm(shape.width, eps=config.norm_eps) for _ in separate)
        self.exit_map_heads = nn.ModuleList(
            MAPHead(shape, config.activation, config.norm_eps) for _ in separate if self.map_head is not None
        )
        self.resize_kernel, self.resize_grid = resizers(config)
        self._init()

    def _init(self) -> None:
        init_weights(self)
        # Inputs of unit variance give outputs of unit variance, as in big_vision's models/vit.py. Its models/proj/flexi/vit.py
        # uses width^-0.5 for every size of the kernel.
        nn.init.normal_(self.kernel, std=self.kernel[0].numel() ** -0.5)
        nn.init.normal_(self.posemb, std=self.width**-0.5)

    def forward(
        self, images: Tensor, seqhw: Size | None = None, patch_size: Size | None = None, *, every_exit: bool = False
    ) -> Tensor:
        """Encode images [B, 3, H, W], normalised, to pooled features [B, D].

        The length is given as `seqhw` (cells per side, or (gh, gw)) or as `patch_size` (pixels), at most one of them; the
        default is the configured length. Raises UserError that names the valid seqhw if the length does not divide the
        image.

        With pool=tok the last block computes the class token alone, [B, 1, D], because no other token is read after it.
        With `every_exit` the result is that of `forward_exits`, [E, B, D]. This is an argument of forward because an
        engine that shards parameters gathers those of a module for its forward only.
        """
        if every_exit:
            return self.forward_exits(images, seqhw)
        return self.pool_tokens(self._encode(self._first_tokens(images, seqhw, patch_size), self._read))

    def forward_tokens(self, images: Tensor, seqhw: Size | None = None, patch_size: Size | None = None) -> Tensor:
        """Encode images [B, 3, H, W] to the tokens after the last norm, [B, N, D].

        With pool=tok the result is [B, 1 + N, D], and the class token comes first.
        """
        return self._encode(self._first_tokens(images, seqhw, patch_size), None)

    def pool_tokens(self, tokens: Tensor) -> Tensor:
        """Pool the tokens that `forward_tokens` returns to features [B, D]."""
        return self._pool(tokens, self.map_head)

    def forward_exits(self, images: Tensor, seqhw: Size | None = None) -> Tensor:
        """Return the pooled features of every exit and, last, of the whole tower, [E, B, D], from one pass over the images."""
        x, found = self._first_tokens(images, seqhw, None), []
        *first, last = self.blocks
        for depth, block in enumerate(first, 1):
            x = block(x)
            if depth in self.config.exits:
                norm, map_head = self.exit_head(depth)
                found.append(self._pool(norm(x), map_head))
        return torch.stack([*found, self.pool_tokens(self.norm(last(x, at=self._read)))])

    @property
    def _read(self) -> int | None:
        """The position of the only token that the pool reads, or None if the pool reads all tokens."""
        return None if self.cls is None else 0

    def _encode(self, x: Tensor, at: int | None) -> Tensor:
        """Apply the blocks and the last norm, [B, L, D] -> [B, L, D], or -> [B, 1, D] for the token `at` alone."""
        *first, last = self.blocks
        for block in first:
            x = block(x)
        return self.norm(last(x, at=at))

    def exit_head(self, depth: int) -> tuple[nn.LayerNorm, MAPHead | None]:
        """Return the norm and the attention pool that follow block `depth`; the pool is None in a tower without one."""
        if self.config.exit_heads == "shared":
            return self.norm, self.map_head
        number = self.config.exits.index(depth)
        map_head = cast(MAPHead, self.exit_map_heads[number]) if self.map_head is not None else None
        return cast(nn.LayerNorm, self.exit_norms[number]), map_head

    def _pool(self, x: Tensor, map_head: MAPHead | None) -> Tensor:
        if map_head is not None:
            return map_head(x)
        return x[:, 0] if self.cls is not None else x.mean(dim=1)

    def _first_tokens(self, images: Tensor, seqhw: Size | None, patch_size: Size | None) -> Tensor:
        """Return the input of the first block: patch embeddings with positions, after the class token if there is one."""
        grid = self.grid_of((images.shape[-2], images.shape[-1]), seqhw, patch_size)
        x = self.embed_patches(images, grid) + self.position_embedding(grid)
        if self.cls is not None:  # the class token of FlexiViT has no position embedding
            x = torch.cat([self.cls.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)
        return self.norm_pre(x)

    def embed_patches(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Embed the patches of images [B, 3, H, W] without positions, [B, N, D], by one reshape and one matrix product."""
        if self.config.flexible == "stride":
            return self._embed_overlapping(images, grid)
        batch, channels, height, width = images.shape
        (gh, gw), (p, q) = grid, (height // grid[0], width // grid[1])
        kernel = self.resize_kernel(self.kernel, (p, q)).to(self.kernel.dtype)
        patches = (
            images.reshape(batch, channels, gh, p, gw, q).permute(0, 2, 4, 1, 3, 5).reshape(batch, gh * gw, channels * p * q)
        )
        return F.linear(patches, kernel.flatten(1), self.bias)

    def _embed_overlapping(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Embed overlapping patches: the kernel keeps its size and moves by one cell, with zeros (grey) around the image.

        The padding is TensorFlow's SAME: both sides get the same number of pixels, and if the number is odd, the extra
        pixel is added below and to the right.
        """
        _, _, height, width = images.shape
        cell, kernel = (height // grid[0], width // grid[1]), (self.kernel.shape[-2], self.kernel.shape[-1])
        above, left = ((k - c) // 2 for k, c in zip(kernel, cell, strict=True))
        padded = F.pad(images, (left, kernel[1] - cell[1] - left, above, kernel[0] - cell[0] - above))
        return F.conv2d(padded, self.kernel, self.bias, stride=cell).flatten(2).transpose(1, 2)

    def position_embedding(self, grid: tuple[int, int]) -> Tensor:
        """Resize the position grid to `grid` and return it as [1, N, D]."""
        return self.resize_grid(self.posemb, grid).flatten(2).transpose(1, 2).to(self.posemb.dtype)

    def grid_of(self, image_size: tuple[int, int], seqhw: Size | None = None, patch_size: Size | None = None) -> tuple[int, int]:
        """Return (gh, gw) for an image of (H, W) pixels and a length that is given as `seqhw` or as `patch_size`.

        Raises UserError if both are given, if the length does not divide the image, or if it would leave gaps between the
        kernels of a tower with flexible=stride.
        """
        if seqhw is not None and patch_size is not None:
            raise UserError(f"give seqhw={seqhw} or patch_size={patch_size}, not both")
        if patch_size is not None:
            grid = tuple(side // p if side % p == 0 else 0 for side, p in zip(image_size, pair(patch_size), strict=True))
        else:
            grid = pair(seqhw if seqhw is not None else self.default_seqhw(image_size))
        asked = f"seqhw={seqhw}" if patch_size is None else f"patch_size={patch_size}"
        widest = self.config.widest_stride
        if any(g < 1 or side % g for side, g in zip(image_size, grid, strict=True)):
            valid = valid_seqhw(image_size, widest)
            raise UserError(f"{asked} does not divide an image of {image_size[0]}x{image_size[1]}; valid seqhw: {valid}")
        if widest is not None and any(s // g > k for s, g, k in zip(image_size, grid, pair(widest), strict=True)):
            valid = valid_seqhw(image_size, widest)
            raise UserError(
                f"{asked} leaves gaps between kernels of {widest} pixels (model.image.flexible=stride); valid: {valid}"
            )
        return grid[0], grid[1]

    def default_seqhw(self, image_size: tuple[int, int] | None = None) -> Size:
        """Return the configured length or, without one, the grid of a model with a fixed patch size.

        That grid is the valid one nearest to the image size divided by the base kernel. If two are equally near, it is
        the shorter one.
        """
        if self.config.default_seqhw is not None:
            return self.config.default_seqhw
        sides = zip(image_size or self.image_size, pair(self.config.base_patch_size), strict=True)
        at_most = self.config.flexible == "stride"  # a larger stride would leave gaps between kernels
        gh, gw = (
            min((g for g in _divisors(side) if not at_most or side <= g * base), key=lambda g: (abs(g - side / base), g))
            for side, base in sides
        )
        return gh if gh == gw else (gh, gw)


def resizers(config: ImageTowerConfig) -> tuple[AxisResize, AxisResize]:
    """Return the resize modules of the kernel and of the grid, with buffers for every length of the configured image size."""
    kernel, base_grid = pair(config.base_patch_size), pair(config.base_grid)
    (height, width) = pair(config.image_size)
    grids = (set(_divisors(height)), set(_divisors(width)))
    patches = ({height // g for g in grids[0]}, {width // g for g in grids[1]})
    pi = partial(pi_matrix, mode=config.kernel_resize, antialias=config.kernel_antialias)
    interpolate = partial(interpolation_matrix, mode=config.grid_resize, antialias=config.grid_antialias)
    largest = 64  # matrices of longer sides are rarely used, so they are built on demand
    keep = [{n for n in sizes if n <= largest} for sizes in (*patches, *grids)]
    return AxisResize(pi, kernel, keep[0], keep[1]), AxisResize(interpolate, base_grid, keep[2], keep[3])


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def own_patch(config: ImageTowerConfig, seqhw: tuple[int, ...]) -> tuple[int, int]:
    """Return the size of the kernel that was trained.

    For a tower of one length this is the patch size at that length, and for any other tower it is the base kernel. A
    tower of one length never saw all of a larger base kernel. What it did not see is still at its random initial values.
    """
    if len(set(seqhw)) != 1 or config.flexible == "stride":
        return pair(config.base_patch_size)
    height, width = pair(config.image_size)
    return height // seqhw[0], width // seqhw[0]


def rebase(state: State, theirs: ImageTowerConfig, ours: ImageTowerConfig, trained: tuple[int, int]) -> tuple[State, list[str]]:
    """Return a tower's state at the base sizes of `ours`, and notes on what was resized.

    This is how FlexiViT, section 3.5, starts a student with base kernel 32 and grid 7 from a ViT of one patch size: the
    kernel is PI-resized, the position grid is resampled, and everything else is copied. The evaluation's `MODEL+pi` does
    the same without training.

    `state` belongs to a tower with the settings `theirs`, and it is resized in the way that these settings name.
    `trained` is the size of the kernel that was trained (`own_patch`). Names and all other tensors stay as they are.
    """
    notes, state = [], dict(state)
    mode, antialias = theirs.kernel_resize, theirs.kernel_antialias
    base, grid = pair(ours.base_patch_size), pair(ours.base_grid)
    if trained != base or pair(theirs.base_patch_size) != base:
        kernel = pi_resize(state["kernel"], trained, mode, antialias)
        state["kernel"] = pi_resize(kernel, base, mode, antialias)
        notes.append(f"the patch kernel PI-resized from {sides(trained)} to {sides(base)}")
    old = (state["posemb"].shape[-2], state["posemb"].shape[-1])
    if old != grid:
        rows, columns = (
            interpolation_matrix(a, b, theirs.grid_resize, theirs.grid_antialias) for a, b in zip(old, grid, strict=True)
        )
        state["posemb"] = resize_axes(state["posemb"], rows, columns)
        notes.append(f"the position grid resampled from {sides(old)} to {sides(grid)}")
    return state, notes
