"""Floating point operations (FLOPs) of the towers, of a training step on one image-text pair, and of the loss.

All numbers follow from shapes. A multiply-add counts as 2, and norms and activations are left out. The resize of kernel
and grid is left out as well, because a whole batch shares it. The forward costs of one image or caption are kept by part,
because a backward pass treats the parts differently: each matrix product costs two of its kind, one for the gradient of
its weights and one for that of its input, but the input of the stem is pixels, which need no gradient.

A training step on one pair consists of

    forward          every tower once; the features of a locked text tower are computed before the first step
                     (train/text_features.py)
    backward         two products for each product of the forward pass where a tower trains; one in a projection
                     whose tower is locked
    gradient cache   one more forward pass of what the engine holds, if a step has several micro-batches (train/step.py)
    recomputation    one more forward pass of the blocks that train, without their last layers, under activation
                     checkpointing

The factor of two comes from Kaplan et al. (arXiv 2001.08361, section 2.1). Recomputation is work but not model FLOPs: an
MFU, and a run whose length is given in FLOPs, count `PairFlops.model` only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flexiclip.config import Config, ImageTowerConfig, ModelConfig, TextTowerConfig
from flexiclip.config.schema import Size, pair
from flexiclip.errors import UserError
from flexiclip.models.locks import blocks_of
from flexiclip.models.text import TextTower, build_text_tower
from flexiclip.models.variants import HEAD_WIDTH, Shape, shape_of


@dataclass(frozen=True)
class TowerFlops:
    """Forward FLOPs of one sample: of the patch embedding, of one block, and of what follows the blocks.

    The last block is counted separately, because it may compute a single token (`tokens_read`).
    """

    stem: int
    block: int
    depth: int
    head: int
    last: int
    block_end: int  # the last layer of `block`, which a checkpointed block does not run again
    last_end: int  # the last layer of `last`

    @property
    def forward(self) -> int:
        """FLOPs of the forward pass through the whole tower."""
        return self.stem + self._blocks(self.depth) + self.head

    def backward(self, open_blocks: int | None = None) -> int:
        """Return the FLOPs of the gradients.

        `open_blocks` is the number of last blocks that train in a locked tower; None means that the whole tower trains.
        """
        if open_blocks is None:
            return self.stem + 2 * (self._blocks(self.depth) + self.head)
        return 2 * (self._blocks(open_blocks) + self.head) if open_blocks else 0

    def recomputation(self, open_blocks: int | None = None) -> int:
        """Return the FLOPs of the second pass through the blocks that train, which activation checkpointing needs."""
        again = self.depth if open_blocks is None else open_blocks
        return self._blocks(again) - (again - 1) * self.block_end - self.last_end if again else 0

    def all_tokens(self) -> TowerFlops:
        """Return the same tower with a last block that computes every token, as other libraries' towers do."""
        return replace(self, last=self.block, last_end=self.block_end)

    def _blocks(self, number: int) -> int:
        """Return the FLOPs of the last `number` blocks."""
        return (number - 1) * self.block + self.last if number else 0


def image_model_flops(config: ModelConfig, seqhw: Size) -> int:
    """Return the FLOPs to encode one image at grid side `seqhw`, including the projection: the cost of a length."""
    width = shape_of(config.image, "model.image").width
    return image_flops(config.image, seqhw).forward + projection_flops(config.image, width, config.embed_dim)


def image_gflops(config: ModelConfig, seqhw: Size) -> float:
    """Return `image_model_flops` in units of 10^9, as results and exports give it."""
    return image_model_flops(config, seqhw) / 1e9


def image_flops(config: ImageTowerConfig, seqhw: Size) -> TowerFlops:
    """Return the FLOPs of the image tower at grid side `seqhw`, without its projection."""
    shape, (gh, gw) = shape_of(config, "model.image"), pair(seqhw)
    height_px, width_px = pair(config.image_size)
    length = gh * gw + (config.pool == "tok")
    # At any patch size every pixel is multiplied with every channel once. Overlapping patches use pixels, and the padding,
    # more than once.
    pixels = height_px * width_px if config.flexible == "patch" else gh * gw * math.prod(pair(config.base_patch_size))
    stem = 2 * shape.width * 3 * pixels
    return _tower(shape, stem, length, tokens_read(config, length), config.pool)


def text_flops(config: TextTowerConfig, length: int) -> TowerFlops:
    """Return the FLOPs of our own text tower on a caption of `length` tokens.

    Masked and causal attention count in full, as torch counts them.
    """
    return _tower(shape_of(config, "model.text"), 0, length, tokens_read(config, length), config.pool)


def foreign_text_flops(tower: nn.Module, length: int) -> TowerFlops:
    """Return the FLOPs of another library's text tower on a caption of `length` tokens.

    Its blocks count as those of `foreign_shape`, and every matrix after the blocks is applied once to a caption.
    """
    known = _tower(foreign_shape(tower), 0, length, length, "mean")
    inside = {id(p) for block in blocks_of(tower) for p in block.parameters()}
    after = sum(p.numel() for p in _matrices(tower) if id(p) not in inside)
    return replace(known, head=2 * after)


def foreign_shape(tower: nn.Module) -> Shape:
    """Return the shape of a transformer of our kind that has as many weights per block as another library's tower.

    It is read from the tower's parameters. It is exact for stacks of equal blocks whose attention has as many channels as
    the tower is wide. A gated MLP counts as a wider plain one. Raises UserError if no stack of blocks can be found.
    """
    blocks = blocks_of(tower)
    if not blocks:
        raise UserError(f"{type(tower).__name__} has no list of blocks: its FLOPs cannot be counted")
    norms = [m for m in blocks[0].modules() if "norm" in type(m).__name__.lower()]
    width = sum(p.numel() for p in norms[0].parameters() if p.ndim == 1) // len(list(norms[0].parameters())) if norms else 0
    if not width:
        raise UserError("the text tower's blocks have no norm to read its width from: its FLOPs cannot be counted")
    weights = sum(p.numel() for p in _matrices(blocks[0]))
    heads = max(1, width // HEAD_WIDTH)
    return Shape(width, len(blocks), heads, (weights - 4 * width * width) // (2 * width))


def tokens_read(config: ImageTowerConfig | TextTowerConfig, length: int) -> int:
    """Return the number of tokens that the last block computes.

    It is 1 if the tower is ours and its pool reads one token, and else `length`.
    """
    ours = isinstance(config, ImageTowerConfig) or config.kind == "transformer"
    return 1 if ours and config.pool in ("tok", "eos", "last") else length


def projection_flops(config: ImageTowerConfig | TextTowerConfig, width: int, embed_dim: int) -> int:
    """Return the FLOPs of projecting one vector into the joint space; 0 without a projection."""
    return 2 * width * embed_dim if config.projection == "linear" else 0


def _tower(shape: Shape, stem: int, length: int, read: int, pool: str) -> TowerFlops:
    """Return the FLOPs of a transformer on `length` tokens whose last block computes `read` of them."""
    width, mlp = shape.width, shape.mlp_dim
    layer = 2 * width * mlp  # one layer of the MLP, for one token

    def block(tokens: int) -> int:
        """Return the FLOPs of a block with `tokens` queries; queries, keys and values are projected for all tokens."""
        return 2 * 3 * length * width * width + 2 * tokens * width * width + 4 * tokens * length * width + 2 * tokens * layer

    head = 0
    if pool == "map":
        head = 2 * length * 2 * width * width + 4 * length * width + 2 * (2 * width * width + 2 * width * mlp)
    return TowerFlops(stem, block(length), shape.depth, head, block(read), length * layer, read * layer)


def _matrices(module: nn.Module) -> Iterator[nn.Parameter]:
    """Return the weight matrices of a module's layers, without embedding tables and learned positions."""
    tables = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    for name, p in module.named_parameters():
        if p.ndim == 2 and id(p) not in tables and not name.endswith(("positional_embedding", "cls_emb")):
            yield p


def measured_gflops(encode: Callable[[Tensor], Tensor], image: Tensor) -> float | None:
    """Return the GFLOPs of any model's `encode` on one image [1, 3, H, W]; None if no product can be seen.

    torch counts what its dispatcher sees: the products that are counted here for our towers. On a CPU it does not see
    inside a fused attention kernel. Attention is therefore computed with plain products meanwhile, and the fused
    inference path of nn.MultiheadAttention is switched off.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            encode(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops() / 1e9 or None


@dataclass(frozen=True)
class PairFlops:
    """FLOPs of one image-text pair in a step, without the loss."""

    forward: int
    backward: int
    gradient_cache: int
    recomputation: int

    @property
    def model(self) -> int:
        """FLOPs of the forward and backward passes, which the mathematics requires."""
        return self.forward + self.backward

    @property
    def total(self) -> int:
        """FLOPs of everything that is computed."""
        return self.model + self.gradient_cache + self.recomputation


@dataclass(frozen=True)
class TextCost:
    """The cost of the text half for one caption of full length."""

    tower: TowerFlops
    width: int  # width of the tower's features
    cached: bool  # the features of a locked tower are computed once, before the first step


def text_cost(config: Config, kept: Callable[[int], bool], tower: TextTower | None = None) -> TextCost | None:
    """Return the cost of a recipe's text half, or None if the recipe has none.

    `kept` says whether a run keeps the features of its captions, by the width of the text tower (schedules.py).
    `tower` is the text tower, on any device. Without it, a tower of another library is built on the meta device.
    Raises UserError for a tower of another library whose FLOPs cannot be counted, or whose configuration is not on this
    machine.
    """
    section = config.model.text
    if section is None:
        return None
    if section.kind == "transformer":
        flops = text_flops(section, section.context_length or config.tokenizer.context_length)
        width = shape_of(section, "model.text").width
    else:
        if tower is None:
            with torch.device("meta"):
                tower = build_text_tower(section, pretrained=False)
        flops, width = foreign_text_flops(tower, int(tower.context_length)), int(tower.width)
    return TextCost(flops, width, kept(width))


def pair_flops(
    config: ModelConfig, text: TextCost | None, seqhw: int, *, several: bool = False, checkpointing: bool = False
) -> PairFlops:
    """Return the FLOPs of one image-text pair in a step at grid side `seqhw`.

    `several` says that the step has more than one micro-batch and so uses the gradient cache. `checkpointing` says that
    activations are recomputed.
    """
    image, ends = image_flops(config.image, seqhw), 1 + len(config.image.exits)
    image = replace(image, head=ends * image.head)
    projection = ends * projection_flops(config.image, shape_of(config.image, "model.image").width, config.embed_dim)
    halves: list[tuple[ImageTowerConfig | TextTowerConfig, TowerFlops, int, bool]] = [(config.image, image, projection, False)]
    if text is not None and config.text is not None:
        halves.append((config.text, text.tower, projection_flops(config.text, text.width, config.embed_dim), text.cached))
    forward = backward = again = recomputed = 0
    for section, tower, projection, cached in halves:
        trains = not section.frozen
        forward += projection + (0 if cached else tower.forward)
        backward += (2 if trains else 1) * projection + tower.backward(section.open_blocks)
        again += projection + (tower.forward if trains else 0)
        recomputed += tower.recomputation(section.open_blocks)
    return PairFlops(forward, backward, again if several else 0, recomputed if checkpointing else 0)


def loss_flops(config: Config, local: int, world: int) -> int:
    """Return the FLOPs of the tiled loss (losses/) on one rank.

    The rank compares `local` images with the captions of all `world` ranks, at every exit and every width that has a
    loss. The number follows from the code of the loss. Softmax computes the b x N logits twice and their gradients by two
    products, 8 b N D in total; sigmoid needs 6 b N D.
    """
    products = (8 if config.loss.kind == "softmax" else 6) * (1 + len(config.model.image.exits))
    return products * local * (local * world) * sum(config.loss.all_widths(config.model.embed_dim))
