"""A FlexiViT's parameters at other base sizes: what it takes to start one from a tower that was trained otherwise.

FlexiViT, section 3.5 (arXiv 2212.08013), starts a student of base kernel 32 and grid 7 from a ViT of one patch size: the patch
kernel is PI-resized, the position grid resampled, and everything else copied. eval's `MODEL+pi` is the same without training.
"""

from __future__ import annotations

from torch import Tensor

from flexiclip.config import ImageTowerConfig
from flexiclip.config.schema import pair
from flexiclip.models.pi_resize import interpolation_matrix, pi_resize, resize_axes

State = dict[str, Tensor]


def own_patch(config: ImageTowerConfig, seqhw: tuple[int, ...]) -> tuple[int, int]:
    """The size of the kernel that was trained: of a tower of one length the patch that it has there, else the base kernel.

    What the one length never looked at of a larger base kernel is still as it was drawn at random.
    """
    if len(set(seqhw)) != 1 or config.flexible == "stride":
        return pair(config.base_patch_size)
    height, width = pair(config.image_size)
    return height // seqhw[0], width // seqhw[0]


def rebase(state: State, theirs: ImageTowerConfig, ours: ImageTowerConfig, trained: tuple[int, int]) -> tuple[State, list[str]]:
    """The tower's state at the base sizes of `ours`, and what was resized. Names and all other tensors stay.

    state: of a tower of the settings `theirs`, whose resizes are used. trained: of its kernel, see own_patch.
    """
    notes, state = [], dict(state)
    mode, antialias = theirs.kernel_resize, theirs.kernel_antialias
    base, grid = pair(ours.base_patch_size), pair(ours.base_grid)
    if trained != base or pair(theirs.base_patch_size) != base:
        kernel = pi_resize(state["kernel"], trained, mode, antialias)
        state["kernel"] = pi_resize(kernel, base, mode, antialias)
        notes.append(f"the patch kernel PI-resized from {_by(trained)} to {_by(base)}")
    old = (state["posemb"].shape[-2], state["posemb"].shape[-1])
    if old != grid:
        rows, columns = (
            interpolation_matrix(a, b, theirs.grid_resize, theirs.grid_antialias) for a, b in zip(old, grid, strict=True)
        )
        state["posemb"] = resize_axes(state["posemb"], rows, columns)
        notes.append(f"the position grid resampled from {_by(old)} to {_by(grid)}")
    return state, notes


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
