"""Opens models of open_clip at their one length: `open_clip:NAME[/PRETRAINED]`, or a folder that open_clip has written.

open_clip itself builds and runs the model, so every one of its image towers can be scored, and the numbers are those of
open_clip. The patch size and the grid of a ViT are read from its modules.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from flexiclip_eval.models.protocol import ForeignModel, Geometry, Length, side
from torch import Tensor, nn

from flexiclip.config.schema import pair
from flexiclip.libraries import library_errors, logged_once
from flexiclip.model_source import ModelSource
from flexiclip.models.flops import measured_gflops
from flexiclip.models.text.open_clip_load import check_folder, check_pretrained, model_config
from flexiclip.tensor_files import read_state

if TYPE_CHECKING:
    from open_clip import CLIP, CustomTextCLIP
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer


class _Encoders(nn.Module):
    """open_clip's two encoders with the arguments that the harness uses."""

    def __init__(self, model: CLIP | CustomTextCLIP) -> None:
        super().__init__()
        self.inner = model

    def encode_image(self, images: Tensor, seqhw: Length = None, normalize: bool = False) -> Tensor:
        """Encode images [B, 3, H, W] as rows [B, D]. seqhw: the length of the model or None, because its patch size is fixed."""
        return self.inner.encode_image(images, normalize=normalize)

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """Encode tokens [B, L] as rows [B, D]."""
        return self.inner.encode_text(tokens, normalize=normalize)


def load_open_clip(source: ModelSource, device: str | torch.device) -> ForeignModel:
    """Open a model of open_clip, in evaluation mode on `device`. Without PRETRAINED its weights are random. Raises UserError."""
    import open_clip

    described = model_config(source.name, source.text)
    check_pretrained(source.name, source.pretrained, source.text)
    if source.name.startswith("local-dir:"):
        check_folder(source.path, described, source.text)
    elif source.pretrained is not None and Path(source.pretrained).is_file() and not source.pretrained.endswith(".npz"):
        read_state(Path(source.pretrained))  # checks the file without unpickling anything, and within limits of size
    with logged_once(), library_errors(f"{source.text}: open_clip cannot load it"):
        model, _, transform = open_clip.create_model_and_transforms(source.name, pretrained=source.pretrained, device=device)
        tokenizer = open_clip.get_tokenizer(source.name)
    model.eval()
    length, geometry = _describe(model)
    return ForeignModel(_Encoders(model).eval(), transform, tokenizer, {length: geometry}, (length,))


def _describe(model: CLIP | CustomTextCLIP) -> tuple[Length, Geometry]:
    """Return the one length of a model and its geometry there. The length is None unless it is a ViT with a square grid."""
    visual = model.visual
    height, width = pair(visual.image_size if isinstance(visual.image_size, int) else tuple(visual.image_size))
    device = next(model.parameters()).device
    gflops = measured_gflops(model.encode_image, torch.zeros(1, 3, height, width, device=device))
    patch = _patch_size(visual)
    if patch is None:
        return None, Geometry(side(height, width), None, gflops)
    grid = (height // patch[0], width // patch[1])
    return grid[0] if grid[0] == grid[1] else None, Geometry(side(height, width), side(*patch), gflops)


def _patch_size(visual: TimmModel | VisionTransformer) -> tuple[int, int] | None:
    """Return (height, width) of the patches in pixels for a ViT of open_clip or timm; None for other towers."""
    from open_clip.transformer import VisionTransformer

    if isinstance(visual, VisionTransformer):
        return pair(visual.patch_size)
    embed = getattr(getattr(visual, "trunk", None), "patch_embed", None)
    size = getattr(embed, "patch_size", None)
    return None if size is None or not hasattr(visual.trunk, "blocks") else pair(size)
