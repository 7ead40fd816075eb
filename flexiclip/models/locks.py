"""Locks: a tower that is frozen whole, or all but its last blocks (LiT, arXiv 2111.07991, and open_clip's unlocked groups).

A tower that is frozen whole runs under no_grad, outside the engine. One that is partly open runs inside it; the gradients end
at its first open block by themselves, because nothing below asks for any.

The blocks of a tower, ours or another library's: the unit in which towers are unlocked, recomputed and compiled.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from flexiclip.config import ImageTowerConfig, TextTowerConfig
from flexiclip.errors import UserError


@dataclass(frozen=True)
class Lock:
    """A locked tower and its parts that train: none of them in a tower that is frozen whole."""

    tower: nn.Module
    open_parts: tuple[nn.Module, ...]

    def freeze(self) -> None:
        """Take the gradients from all but the open parts."""
        self.tower.requires_grad_(False)
        for part in self.open_parts:
            part.requires_grad_(True)

    def set_mode(self, training: bool) -> None:
        """Eval mode for what is frozen, so that its dropout stays off; `training` for the rest."""
        self.tower.eval()
        for part in self.open_parts:
            part.train(training)


def lock_of(tower: nn.Module, config: ImageTowerConfig | TextTowerConfig, where: str) -> Lock:
    """The lock of a tower as its section of the recipe, `where`, asks for it. Raises UserError for more blocks than there are."""
    if config.unlock_last == 0:
        return Lock(tower, ())
    blocks, after = _stack(tower, where)
    if config.unlock_last > len(blocks):
        raise UserError(f"{where}.unlock_last={config.unlock_last} exceeds the tower's {len(blocks)} blocks")
    return Lock(tower, (*blocks[-config.unlock_last :], *after))


def _stack(tower: nn.Module, where: str) -> tuple[list[nn.Module], list[nn.Module]]:
    """The tower's blocks, and the modules that follow the last of them."""
    if isinstance(getattr(tower, "blocks", None), nn.ModuleList):  # FlexiViT and TextTransformer
        after = [part for part in (tower.norm, tower.map_head) if isinstance(part, nn.Module)]
        return blocks_of(tower), after
    blocks = blocks_of(tower) if hasattr(tower, "encoder") else []  # what follows an open_clip tower's blocks is not known
    if not blocks:
        raise UserError(f"{where}.unlock_last: the blocks of this tower are not known; import it with flexiclip import first")
    return blocks, []


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
