"""Runs models with a fixed patch size at other lengths, by resizing their patch kernel (FlexiViT, arXiv 2212.08013, section 3.4).

    flexiclip eval open_clip:ViT-B-16/openai+pi open_clip:ViT-B-16/openai+bilinear --suite openmoji --seqhw 7,14,28

`MODEL+pi` uses PI-resize; the other endings are the heuristics with which the paper compares it (FLEXES). The kernel is resized
from its own size:

    pi         PI-resize
    bilinear   as if it were a picture, with half-pixel centres and without antialiasing (F.interpolate)
    bicubic    the same with the cubic of F.interpolate
    area       bilinear, times old area / new area, so that a patch of one colour keeps its embedding at any number of pixels
    norm       bilinear, then each filter [3, p, q] is scaled back to the Frobenius norm that it had

The grid of positions is resampled bilinearly with antialiasing in all cases. Every model that runs in the towers of flexiclip may
be flexed, model folders of flexiclip too. A model that was trained at a single length is first turned into the plain ViT of that
patch size: its base kernel is larger, and the part of it that this length never used still has its random initial values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from flexiclip_eval.models.protocol import ForeignModel, Geometry, Length, geometry_of
from torch import Tensor, nn

from flexiclip.config.schema import pair
from flexiclip.config.validate import valid_seqhw
from flexiclip.errors import UserError
from flexiclip.model_folder import LoadedModel
from flexiclip.models.flexivit import FlexiViT, resizers
from flexiclip.models.pi_resize import AxisMatrix, AxisResize, interpolation_matrix

SHORTEST, LONGEST = 5, 30  # the range of seqhw in the paper, which limits the lengths that are scored by default


def flexed(loaded: LoadedModel, where: str, flex: str) -> ForeignModel:
    """Change a model so that it runs at every length that divides its images. `flex` is one of FLEXES.

    Raises UserError, which starts with `where`, if its patches overlap.
    """
    found = at_every_length(loaded, where)
    trained = loaded.config.trained_seqhw
    if len(trained) == 1:
        fix_patch(loaded.model.image_tower, trained[0])
    FLEXES[flex](loaded.model.image_tower)
    return found


def at_every_length(loaded: LoadedModel, where: str) -> ForeignModel:
    """Return a model with all lengths that divide its images, which its config alone decides. Raises UserError as flexed does."""
    if loaded.config.model.image.flexible == "stride":
        raise UserError(f"{where}: its patches overlap (model.image.flexible=stride), and their kernel is never resized")
    size = loaded.config.model.image.image_size
    lengths: dict[Length, Geometry] = {seqhw: geometry_of(loaded.config, seqhw) for seqhw in valid_seqhw(size)}
    default = [seqhw for seqhw in valid_seqhw(size) if SHORTEST <= seqhw <= LONGEST]
    default = sorted({*default, *loaded.config.trained_seqhw})
    return ForeignModel(loaded.model, loaded.transform, loaded.tokenizer, lengths, tuple(default), loaded.config)


def fix_patch(tower: FlexiViT, seqhw: int) -> None:
    """Replace the kernel of a tower by the kernel that it uses at one length, from which PI-resize then starts."""
    height, width = pair(tower.config.image_size)
    own = (height // seqhw, width // seqhw)
    kernel = tower.resize_kernel(tower.kernel.detach(), own)
    tower.kernel = nn.Parameter(kernel.clone(), requires_grad=False)
    tower.config = replace(tower.config, base_patch_size=own)
    tower.resize_kernel, _ = (resizer.to(kernel.device) for resizer in resizers(tower.config))


class NormPreserving(nn.Module):
    """Resizes kernels with `resize`, then scales each filter back to the Frobenius norm that it had."""

    def __init__(self, resize: AxisResize) -> None:
        super().__init__()
        self.resize = resize

    def forward(self, kernel: Tensor, size: tuple[int, int]) -> Tensor:
        """Resize a kernel [D, C, H, W] to [D, C, *size], float32, autocast off. A filter that becomes all zeros stays zero."""
        with torch.autocast(kernel.device.type, enabled=False):
            resized = self.resize(kernel, size)
            before, after = (x.float().flatten(1).norm(dim=1) for x in (kernel, resized))
            return resized * (before / after.clamp(min=torch.finfo(torch.float32).tiny))[:, None, None, None]


def _area_matrix(old: int, new: int) -> Tensor:
    return interpolation_matrix(old, new, "bilinear") * (old / new)


def _resize_by(tower: FlexiViT, matrix: AxisMatrix) -> None:
    """Make the tower resize its kernel with `matrix` along both axes."""
    tower.resize_kernel = _axis_resize(tower, matrix)


def _keep_norm(tower: FlexiViT) -> None:
    tower.register_module("resize_kernel", NormPreserving(_axis_resize(tower, interpolation_matrix)))


def _axis_resize(tower: FlexiViT, matrix: AxisMatrix) -> AxisResize:
    """Return the resizer from the size of the tower's kernel to its sizes at all lengths that divide the images."""
    kernel, (height, width) = pair(tower.config.base_patch_size), pair(tower.config.image_size)
    patches = [{side // grid for grid in valid_seqhw(side)} for side in (height, width)]
    return AxisResize(matrix, kernel, patches[0], patches[1]).to(tower.kernel.device)


FLEXES: dict[str, Callable[[FlexiViT], None]] = {
    "pi": lambda tower: None,  # PI-resize is what towers of flexiclip do
    "bilinear": partial(_resize_by, matrix=interpolation_matrix),
    "bicubic": partial(_resize_by, matrix=partial(interpolation_matrix, mode="bicubic")),
    "area": partial(_resize_by, matrix=_area_matrix),
    "norm": _keep_norm,
}
"""{ending of a model's name: the function that makes a tower resize its kernel in this way}. model_source.FLEXES has its keys."""
