"""The blocks of a tower, ours or another library's: the unit in which towers are unlocked, recomputed and compiled."""

from __future__ import annotations

from torch import nn


def blocks_of(tower: nn.Module) -> list[nn.Module]:
    """The tower's blocks, in order: the longest list of modules that lies in no other list; [] where there is none.

    `blocks` of our towers, `encoder.layer`, `layers` or `block` of a Hugging Face encoder, `resblocks` of an open_clip one. T5's
    blocks hold lists themselves, and those do not count.
    """
    longest: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in tower.modules():  # parents come first
        if isinstance(module, nn.ModuleList) and module not in inside:
            inside.update(module.modules())
            longest = max(longest, list(module), key=len)
    return longest
