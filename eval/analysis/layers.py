"""The outputs of the layers of an image tower, read by hooks while the tower runs unchanged."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from flexiclip.models.blocks import blocks_of
from flexiclip.models.flexivit import FlexiViT

Visit = Callable[[int, Tensor], None]
"""(number of the layer, its output [B, L, D], pooled features [B, D])."""


def layer_names(tower: FlexiViT) -> list[str]:
    """Return the names of the layers: the patch embedding with its positions, each block, and the pooled features."""
    return ["stem", *(f"block {i + 1}" for i in range(len(blocks_of(tower)))), "pooled"]


def visit_layers(tower: FlexiViT, images: Tensor, seqhw: int, visit: Visit) -> None:
    """Call `visit` with the output of each layer for images [B, 3, H, W], in the order of layer_names.

    A class token is left out of the layers before the pooled features, because those are compared as maps of the image.
    """
    skip = int(tower.cls is not None)
    blocks = blocks_of(tower)

    def enter(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        visit(0, args[0][:, skip:])

    def leave(number: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda module, args, output: visit(number, output[:, skip:])

    handles = [blocks[0].register_forward_pre_hook(enter)]
    handles += [block.register_forward_hook(leave(i + 1)) for i, block in enumerate(blocks)]
    try:
        tokens = tower.forward_tokens(images, seqhw)
    finally:
        for handle in handles:
            handle.remove()
    visit(len(blocks) + 1, tower.pool_tokens(tokens))
