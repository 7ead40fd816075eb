"""How the blocks of a model that is built run while it trains: with their activations recomputed.

A block's `forward` is replaced on the instance: towers of any library are treated alike, parameters keep their names, and neither
the model's config nor its saved state knows of it. The hooks by which ZeRO-3 gathers a block's parameters stay outside.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from flexiclip.errors import UserError
from flexiclip.models.blocks import blocks_of


def trained_blocks(tower: nn.Module) -> list[nn.Module]:
    """The tower's blocks with a parameter that trains: backward visits no other. Raises UserError for a tower without blocks."""
    blocks = blocks_of(tower)
    if not blocks:
        raise UserError(
            f"{type(tower).__name__} has no list of blocks: set train.activation_checkpointing=false and train.compile=false"
        )
    return [block for block in blocks if any(p.requires_grad for p in block.parameters())]


def recompute_blocks(tower: nn.Module) -> None:
    """Keep only the input of each block that trains, and compute the rest again in backward, under the same random state."""
    for block in trained_blocks(tower):
        block.forward = MethodType(_recomputed, block)  # a bound method, which deepcopy binds to the copy


def _recomputed(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = type(self).forward
    if not torch.is_grad_enabled():
        return forward(self, *args, **kwargs)
    return checkpoint(forward, self, *args, use_reentrant=False, **kwargs)
