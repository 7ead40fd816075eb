"""Locked towers: frozen as a whole or except for the last blocks (LiT, arXiv 2111.07991; open_clip's unlocked groups).

A tower that is frozen as a whole runs under no_grad, outside the engine. A tower that is partly open runs inside the
engine. Its backward pass stops at the first open block, because nothing below that block requires gradients.

`blocks_of` finds the blocks of any tower, ours or another library's. A block is the unit in which towers are unlocked,
recomputed and compiled.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from flexiclip.config import ImageTowerConfig, TextTowerConfig
from flexiclip.errors import UserError


@dataclass(frozen=True)
class Lock:
    """A locked tower and those of its parts that train. `open_parts` is empty for a tower that is frozen as a whole."""

    tower: nn.Module
    open_parts: tuple[nn.Module, ...]

    def freeze(self) -> None:
        """Turn off gradients for everything except the open parts."""
        self.tower.requires_grad_(False)
        for part in self.open_parts:
            part.requires_grad_(True)

    def set_mode(self, training: bool) -> None:
        """Put the open parts into the mode `training`, and everything else into eval mode, so that its dropout stays off."""
        self.tower.eval()
        for part in self.open_parts:
            part.train(training)


def lock_of(tower: nn.Module, config: ImageTowerConfig | TextTowerConfig, where: str) -> Lock:
    """Return the lock that a tower's section of the recipe asks for.

    `where` is the name of the section. Raises UserError if the section unlocks more blocks than the tower has.
    """
    if config.unlock_last == 0:
        return Lock(tower, ())
    blocks, after = _stack(tower, where)
    if config.unlock_last > len(blocks):
        raise UserError(f"{where}.unlock_last={config.unlock_last} exceeds the tower's {len(blocks)} blocks")
    return Lock(tower, (*blocks[-config.unlock_last :], *after))


def _stack(tower: nn.Module, where: str) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return the tower's blocks, and the modules that come after the last block."""
    if isinstance(getattr(tower, "blocks", None), nn.ModuleList):  # FlexiViT and TextTransformer
        after = [part for part in (tower.norm, tower.map_head) if isinstance(part, nn.Module)]
        return blocks_of(tower), after
    blocks = blocks_of(tower) if hasattr(tower, "encoder") else []  # what follows the blocks of an open_clip tower is unknown
    if not blocks:
        raise UserError(f"{where}.unlock_last: the blocks of this tower are not known; import it with flexiclip import first")
    return blocks, []


def blocks_of(tower: nn.Module) -> list[nn.Module]:
    """Return the tower's blocks in order: the longest list of modules that is not inside another list, or [] if there is none.

    This is `blocks` in our towers, `encoder.layer`, `layers` or `block` in a Hugging Face encoder, and `resblocks` in an
    open_clip tower. The blocks of T5 contain lists themselves, which do not count.
    """
    longest: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in tower.modules():  # parents come first
        if isinstance(module, nn.ModuleList) and module not in inside:
            inside.update(module.modules())
            longest = max(longest, list(module), key=len)
    return longest
