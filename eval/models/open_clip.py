"""Opens models of open_clip at their one length: `open_clip:NAME[/PRETRAINED]`, or a folder that open_clip has written.

open_clip itself builds and runs the model, so every one of its image towers can be scored, and the numbers are those of
open_clip. The patch size and the grid of a ViT are read from its modules.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from flexiclip_eval.models.protocol import OPEN_CLIP, ForeignModel, Geometry, Length, side
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flexiclip.config.schema import pair
from flexiclip.errors import UserError
from flexiclip.models.text.open_clip import refuse_foreign_code
from flexiclip.models.text.open_clip_load import check_folder
from flexiclip.tensor_files import read_state


class _Encoders(nn.Module):
    """open_clip's two encoders with the arguments that the harness uses."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model

    def encode_image(self, images: Tensor, seqhw: Length = None, normalize: bool = False) -> Tensor:
        """Encode images [B, 3, H, W] as rows [B, D]. seqhw: the length of the model or None, because its patch size is fixed."""
        return self.inner.encode_image(images, normalize=normalize)

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """Encode tokens [B, L] as rows [B, D]."""
        return self.inner.encode_text(tokens, normalize=normalize)


def load_open_clip(source: str, device: str | torch.device) -> ForeignModel:
    """Open `open_clip:NAME[/PRETRAINED]` or a folder of open_clip, in evaluation mode on `device`. Raises UserError.

    PRETRAINED is a tag of open_clip or a file; without it the weights are random.
    """
    import open_clip

    refuse_foreign_code()
    name, pretrained = _named(source)
    try:
        model, _, transform = open_clip.create_model_and_transforms(name, pretrained=pretrained or None, device=device)
        tokenizer = open_clip.get_tokenizer(name)
    except UserError:
        raise
    except Exception as error:  # open_clip checks little of what it reads, so bad input raises errors of any kind
        raise UserError(f"{source}: open_clip cannot load it: {str(error)[:400]}") from None
    model.eval()
    length, geometry = _describe(model)
    return ForeignModel(_Encoders(model).eval(), transform, tokenizer, {length: geometry}, (length,))


def _named(source: str) -> tuple[str, str]:
    """Return (open_clip's name of the model, tag or file), after the checks that open_clip does not make itself."""
    import open_clip

    if not source.startswith(OPEN_CLIP):
        name = f"local-dir:{source}"
        check_folder(Path(source), _described(name, source), source)
        return name, ""
    name, _, pretrained = source.removeprefix(OPEN_CLIP).partition("/")
    if name not in open_clip.list_models():
        raise UserError(f"{source}: open_clip knows no model {name!r}; see open_clip.list_models()")
    if Path(pretrained).is_file() and not pretrained.endswith(".npz"):
        read_state(Path(pretrained))  # checks the file without unpickling anything, and within limits of size
    return name, pretrained


def _described(name: str, source: str) -> dict[str, Any]:
    import open_clip

    try:
        described = open_clip.get_model_config(name)
    except Exception as error:  # errors of the JSON in its configuration
        raise UserError(f"{source}: open_clip cannot read its configuration: {error!r}") from None
    if not isinstance(described, dict):
        raise UserError(f"{source}: open_clip finds no configuration there")
    return described


def _describe(model: Any) -> tuple[Length, Geometry]:
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


def measured_gflops(encode: Callable[[Tensor], Tensor], image: Tensor) -> float | None:
    """Return the GFLOPs of `encode` on one image [1, 3, H, W], where a multiply-add counts 2; None if no product can be seen.

    The counted products are those that flexiclip/models/flops.py counts for models of flexiclip.

    torch counts what its dispatcher sees, and on a CPU it does not see inside a fused attention kernel. Attention is therefore
    computed with plain products meanwhile, and the fused inference path of nn.MultiheadAttention is switched off.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            encode(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops() / 1e9 or None


def _patch_size(visual: Any) -> tuple[int, int] | None:
    """Return (height, width) of the patches in pixels for a ViT of open_clip or timm; None for other towers."""
    from open_clip.transformer import VisionTransformer

    if isinstance(visual, VisionTransformer):
        return pair(visual.patch_size)
    embed = getattr(getattr(visual, "trunk", None), "patch_embed", None)
    size = getattr(embed, "patch_size", None)
    return None if size is None or not hasattr(visual.trunk, "blocks") else pair(size)
