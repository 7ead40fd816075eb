"""Models of open_clip as the harness takes them: `open_clip:NAME[/PRETRAINED]` or a folder of open_clip's, at their one length.

open_clip builds and runs them, so that any of its image towers can be scored and the numbers are its own; what a ViT's patches
and grid are is read from its modules.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from flexiclip_eval.models.cost import measured_gflops
from flexiclip_eval.models.protocol import OPEN_CLIP, ForeignModel, Geometry, Length, side
from torch import Tensor, nn

from flexiclip.config.schema import pair
from flexiclip.errors import UserError
from flexiclip.models.text.open_clip import refuse_foreign_code
from flexiclip.models.text.open_clip_load import check_folder
from flexiclip.tensor_files import read_state


class _Encoders(nn.Module):
    """open_clip's two encoders with our arguments."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model

    def encode_image(self, images: Tensor, seqhw: Length = None, normalize: bool = False) -> Tensor:
        """images [B, 3, H, W] -> [B, D]. seqhw: the model's own, or None; the patch size is fixed."""
        return self.inner.encode_image(images, normalize=normalize)

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """tokens [B, L] -> [B, D]."""
        return self.inner.encode_text(tokens, normalize=normalize)


def load_open_clip(source: str, device: str | torch.device) -> ForeignModel:
    """Open `open_clip:NAME[/PRETRAINED]`, PRETRAINED a tag or a file, else random weights; or a folder. Raises UserError."""
    import open_clip

    refuse_foreign_code()
    name, pretrained = _named(source)
    try:
        model, _, transform = open_clip.create_model_and_transforms(name, pretrained=pretrained or None, device=device)
        tokenizer = open_clip.get_tokenizer(name)
    except UserError:
        raise
    except Exception as error:  # open_clip checks little of what it reads: each nonsense has an error of its own
        raise UserError(f"{source}: open_clip cannot load it: {str(error)[:400]}") from None
    model.eval()
    length, geometry = _describe(model)
    return ForeignModel(_Encoders(model).eval(), transform, tokenizer, {length: geometry}, (length,))


def _named(source: str) -> tuple[str, str]:
    """(open_clip's name, tag or file), after the looks that open_clip does not take at what it is handed."""
    import open_clip

    if not source.startswith(OPEN_CLIP):
        name = f"local-dir:{source}"
        check_folder(Path(source), _described(name, source), source)
        return name, ""
    name, _, pretrained = source.removeprefix(OPEN_CLIP).partition("/")
    if name not in open_clip.list_models():
        raise UserError(f"{source}: open_clip knows no model {name!r}; see open_clip.list_models()")
    if Path(pretrained).is_file() and not pretrained.endswith(".npz"):
        read_state(Path(pretrained))  # unpickles nothing, and keeps within bounds
    return name, pretrained


def _described(name: str, source: str) -> dict[str, Any]:
    import open_clip

    try:
        described = open_clip.get_model_config(name)
    except Exception as error:  # of its JSON
        raise UserError(f"{source}: open_clip cannot read its configuration: {error!r}") from None
    if not isinstance(described, dict):
        raise UserError(f"{source}: open_clip finds no configuration there")
    return described


def _describe(model: Any) -> tuple[Length, Geometry]:
    """Its one length, where it is a ViT with square patches on a square grid, and what it is there."""
    visual = model.visual
    height, width = pair(visual.image_size if isinstance(visual.image_size, int) else tuple(visual.image_size))
    device = next(model.parameters()).device
    gflops = measured_gflops(model.encode_image, torch.zeros(1, 3, height, width, device=device))
    patch = _patch_size(visual)
    if patch is None:
        return None, Geometry(side(height, width), None, gflops)
    grid = (height // patch[0], width // patch[1])
    return grid[0] if grid[0] == grid[1] else None, Geometry(side(height, width), side(*patch), gflops)


def _patch_size(visual: Any) -> tuple[int, int] | None:
    """(height, width) of a ViT's patches in pixels, open_clip's own or timm's; None for other towers."""
    from open_clip.transformer import VisionTransformer

    if isinstance(visual, VisionTransformer):
        return pair(visual.patch_size)
    embed = getattr(getattr(visual, "trunk", None), "patch_embed", None)
    size = getattr(embed, "patch_size", None)
    return None if size is None or not hasattr(visual.trunk, "blocks") else pair(size)
