"""Fixed-patch models at other lengths: `MODEL+pi`, and the heuristics that FlexiViT compares it with (arXiv 2212.08013, 3.4).

    flexiclip eval open_clip:ViT-B-16/openai+pi open_clip:ViT-B-16/openai+bilinear --suite openmoji --seqhw 7,14,28

The patch kernel is resized from its own size, in one of these ways (FLEXES):

pi         PI-resize
bilinear   as if it were a picture: half-pixel centres, no antialias (F.interpolate)
bicubic    the same with the cubic of F.interpolate
area       bilinear, times old area / new area: an even patch keeps its embedding, however many pixels it has
norm       bilinear, then each filter [3, p, q] scaled back to the Frobenius norm that it had

The position grid is resampled bilinearly with antialias in all of them. Any source that our towers can take may be flexed, our
own folders too. One that was trained at a single length is first made the ViT of that patch size that it is: its base kernel is
larger, and what the one length never looked at of it is still as it was drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from flexiclip_eval.models.protocol import ForeignModel, Geometry, Length, geometry_of
from flexiclip_eval.models.readers import read_model
from torch import Tensor, nn

from flexiclip.config.schema import pair
from flexiclip.config.validate import valid_seqhw
from flexiclip.errors import UserError
from flexiclip.models.flexivit import FlexiViT, resizers
from flexiclip.models.pi_resize import AxisMatrix, AxisResize, interpolation_matrix

SHORTEST, LONGEST = 5, 30  # grids of the paper, to which those that are scored by default are held


def split_suffix(source: str) -> tuple[str, str | None]:
    """(source, how to flex it): `A+pi` -> ("A", "pi"). A path that exists is no suffix's."""
    plain, plus, flex = source.rpartition("+")
    if not plus or flex not in FLEXES or Path(source).exists():
        return source, None
    return plain, flex


def open_flexed(source: str, flex: str, device: str) -> ForeignModel:
    """The model at every length that divides its images. Raises UserError for one that is no plain ViT, or has no weights."""
    loaded = read_model(source, device)
    if loaded.config.model.image.flexible == "stride":
        raise UserError(f"{source}+{flex}: its patches overlap (model.image.flexible=stride), and no kernel of them is resized")
    trained = loaded.config.trained_seqhw
    if len(trained) == 1:
        fix_patch(loaded.model.image_tower, trained[0])
    FLEXES[flex](loaded.model.image_tower)
    size = loaded.config.model.image.image_size
    lengths: dict[Length, Geometry] = {seqhw: geometry_of(loaded.config, seqhw) for seqhw in valid_seqhw(size)}
    default = [seqhw for seqhw in valid_seqhw(size) if SHORTEST <= seqhw <= LONGEST]
    default = sorted({*default, *trained})
    return ForeignModel(loaded.model, loaded.transform, loaded.tokenizer, lengths, tuple(default), loaded.config)


def fix_patch(tower: FlexiViT, seqhw: int) -> None:
    """Have the tower hold its kernel in the size that it has at one length, and PI-resize that one."""
    height, width = pair(tower.config.image_size)
    own = (height // seqhw, width // seqhw)
    kernel = tower.resize_kernel(tower.kernel.detach(), own)
    tower.kernel = nn.Parameter(kernel.clone(), requires_grad=False)
    tower.config = replace(tower.config, base_patch_size=own)
    tower.resize_kernel, _ = (resizer.to(kernel.device) for resizer in resizers(tower.config))


class NormPreserving(nn.Module):
    """Resizes kernels with `resize`, then gives each filter the norm that it had."""

    def __init__(self, resize: AxisResize) -> None:
        super().__init__()
        self.resize = resize

    def forward(self, kernel: Tensor, size: tuple[int, int]) -> Tensor:
        """kernel [D, C, H, W] -> [D, C, *size] float32, autocast off. A filter that is resized to nothing but zeros stays so."""
        with torch.autocast(kernel.device.type, enabled=False):
            resized = self.resize(kernel, size)
            before, after = (x.float().flatten(1).norm(dim=1) for x in (kernel, resized))
            return resized * (before / after.clamp(min=torch.finfo(torch.float32).tiny))[:, None, None, None]


def _area_matrix(old: int, new: int) -> Tensor:
    return interpolation_matrix(old, new, "bilinear") * (old / new)


def _keep(tower: FlexiViT) -> None:
    """PI-resize is what our towers do by themselves."""


def _resize_by(tower: FlexiViT, matrix: AxisMatrix) -> None:
    """Have the tower resize its kernel with `matrix` on either axis."""
    tower.resize_kernel = _axis_resize(tower, matrix)


def _keep_norm(tower: FlexiViT) -> None:
    tower.register_module("resize_kernel", NormPreserving(_axis_resize(tower, interpolation_matrix)))


def _axis_resize(tower: FlexiViT, matrix: AxisMatrix) -> AxisResize:
    """From the size of the tower's kernel to that of every length of its images."""
    kernel, (height, width) = pair(tower.config.base_patch_size), pair(tower.config.image_size)
    patches = [{side // grid for grid in valid_seqhw(side)} for side in (height, width)]
    return AxisResize(matrix, kernel, patches[0], patches[1]).to(tower.kernel.device)


FLEXES: dict[str, Callable[[FlexiViT], None]] = {
    "pi": _keep,
    "bilinear": partial(_resize_by, matrix=interpolation_matrix),
    "bicubic": partial(_resize_by, matrix=partial(interpolation_matrix, mode="bicubic")),
    "area": partial(_resize_by, matrix=_area_matrix),
    "norm": _keep_norm,
}
"""The suffix of a source -> what makes its tower resize the kernel in that way."""
