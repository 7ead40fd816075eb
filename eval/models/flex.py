"""Fixed-patch models at other lengths: `MODEL+pi` and `MODEL+bilinear`, the comparison of FlexiViT's Figure 3 (arXiv 2212.08013).

    flexiclip eval open_clip:ViT-B-16/openai+pi open_clip:ViT-B-16/openai+bilinear --suite openmoji --seqhw 7,14,28

The patch kernel is resized from its own size by PI-resize, or by a plain bilinear resize of its values (half-pixel centres, no
antialias: F.interpolate); the position grid is resampled bilinearly with antialias in both. Any source that our towers can take
may be flexed, our own folders too. One that was trained at a single length is first made the ViT of that patch size that it is:
its base kernel is larger, and what the one length never looked at of it is still as it was drawn at random.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from flexiclip.config.schema import pair
from flexiclip.config.validate import valid_seqhw
from flexiclip.models.flexivit import FlexiViT, resizers
from flexiclip.models.pi_resize import AxisResize, interpolation_matrix

from .protocol import ForeignModel, Geometry, Length, geometry_of
from .readers import read_model

FLEXES = ("pi", "bilinear")
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
    if len(loaded.config.patch.seqhw) == 1:
        fix_patch(loaded.model.image_tower, loaded.config.patch.seqhw[0])
    if flex == "bilinear":
        resize_plainly(loaded.model.image_tower)
    size = loaded.config.model.image.image_size
    lengths: dict[Length, Geometry] = {seqhw: geometry_of(loaded.config, seqhw) for seqhw in valid_seqhw(size)}
    default = [seqhw for seqhw in valid_seqhw(size) if SHORTEST <= seqhw <= LONGEST]
    default = sorted({*default, *loaded.config.patch.seqhw})
    return ForeignModel(loaded.model, loaded.transform, loaded.tokenizer, lengths, tuple(default), loaded.config)


def fix_patch(tower: FlexiViT, seqhw: int) -> None:
    """Have the tower hold its kernel in the size that it has at one length, and PI-resize that one."""
    height, width = pair(tower.config.image_size)
    own = (height // seqhw, width // seqhw)
    kernel = tower.resize_kernel(tower.kernel.detach(), own)
    tower.kernel = nn.Parameter(kernel.clone(), requires_grad=False)
    tower.config = replace(tower.config, base_patch_size=own)
    tower.resize_kernel, _ = (resizer.to(kernel.device) for resizer in resizers(tower.config))


def resize_plainly(tower: FlexiViT) -> None:
    """Have the tower resize its kernel [D, 3, p, q] as if it were a picture, in the place of PI-resize."""
    config = tower.config
    kernel, (height, width) = pair(config.base_patch_size), pair(config.image_size)
    patches = [{side // grid for grid in valid_seqhw(side)} for side in (height, width)]
    matrix = partial(interpolation_matrix, mode="bilinear", antialias=False)
    tower.resize_kernel = AxisResize(matrix, kernel, patches[0], patches[1]).to(tower.kernel.device)
