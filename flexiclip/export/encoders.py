"""The modules that are traced for an export: an image encoder at one length, and a text encoder.

`bake` resizes the base kernel and the base grid once and makes the results parameters of the tower, which leaves a plain
ViT. The encoders return unit embeddings, so the dot product of an image's and a text's embeddings is their cosine.

Shapes: B batch, [H, W] image, [gh, gw] grid, L tokens, E joint space.
"""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flexiclip.config import PreprocessConfig
from flexiclip.config.schema import Size
from flexiclip.errors import UserError
from flexiclip.models.clip import FlexiCLIP
from flexiclip.models.exits import bake


class ImageEncoder(nn.Module):
    """Maps images to unit embeddings at one length.

    If `preprocess` is given, the input is uint8 pixels (0 to 255), and the encoder normalises them itself. Otherwise the
    input is float32, normalised as the model's transform does it.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: FlexiCLIP, seqhw: Size | None = None, preprocess: PreprocessConfig | None = None) -> None:
        super().__init__()
        self.tower = bake(model.image_tower, seqhw)
        self.projection = deepcopy(model.image_projection).cpu().float().eval().requires_grad_(False)
        self.pixels = preprocess is not None
        if preprocess is not None:
            std = torch.tensor(preprocess.std).view(-1, 1, 1)
            self.register_buffer("scale", 1 / (255 * std))
            self.register_buffer("shift", -torch.tensor(preprocess.mean).view(-1, 1, 1) / std)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images [B, 3, H, W], uint8 or float32 as described above, to unit vectors [B, E] in float32."""
        if self.pixels:
            images = images.float() * self.scale + self.shift
        return F.normalize(self.projection(self.tower(images)), dim=-1)


class TextEncoder(nn.Module):
    """Maps tokens to unit embeddings. `dynamic_length` says whether it accepts fewer columns than the context length."""

    def __init__(self, model: FlexiCLIP) -> None:
        super().__init__()
        require_text(model)
        self.tower = deepcopy(model.text_tower).cpu().float().eval().requires_grad_(False)
        self.projection = deepcopy(model.text_projection).cpu().float().eval().requires_grad_(False)
        self.context_length: int = model.text_tower.context_length
        self.dynamic_length: bool = model.text_tower.trims

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode tokens [B, L] int64 to unit vectors [B, E] in float32."""
        return F.normalize(self.projection(self.tower(tokens)), dim=-1)


def require_text(model: FlexiCLIP) -> None:
    """Raise UserError if the model is an image tower alone."""
    if model.config.text is None:
        raise UserError("this model is an image tower alone: there is no text half to export")
