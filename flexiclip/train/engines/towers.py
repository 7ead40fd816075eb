"""What an engine trains: the towers and projections of a model without its frozen towers and without its scalars.

A tower that is locked whole runs outside the engine, under no_grad and in eval mode, so no engine shards, reduces or steps it.
The scalars of the loss have an optimiser of their own (optim.py). Parameter names are the model's, so that state by name fits
both.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flexiclip.data.images import normalize
from flexiclip.models.clip import FlexiCLIP


class Towers(nn.Module):
    """(images or image features, tokens or text features, seqhw) -> unit embeddings zimg, ztxt [B, embed_dim] float32.

    Images are normalised here, a micro-batch at a time: a whole batch as float32 would take four times its memory.
    """

    def __init__(self, model: FlexiCLIP, bf16: bool) -> None:
        super().__init__()
        self.bf16, self.preprocess = bf16, model.config.preprocess
        self.image_tower = None if model.config.image.frozen else model.image_tower
        self.text_tower = None if model.config.text_frozen else model.text_tower
        self.image_projection, self.text_projection = model.image_projection, model.text_projection
        self.image_width, self.text_width = model.image_tower.width, model.text_tower.width
        self._project = model.project_image, model.project_text

    def forward(self, image: Tensor, text: Tensor, seqhw: int) -> tuple[Tensor, Tensor]:
        """image [B, 3, H, W] uint8, text [B, L] int64; a tower that is locked gets its features [B, width] in place of them."""
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.bf16):
            if self.image_tower is not None:
                image = self.image_tower(normalize(image, self.preprocess.mean, self.preprocess.std), seqhw)
            if self.text_tower is not None:
                text = self.text_tower(text)
            return self._project[0](image), self._project[1](text)

    def dummy_inputs(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The smallest valid (image, text), for a pass whose result does not matter."""
        image = torch.zeros(1, self.image_width, device=device)
        if self.image_tower is not None:
            image = torch.zeros(1, 3, *self.image_tower.image_size, dtype=torch.uint8, device=device)
        text = torch.zeros(1, self.text_width, device=device)
        if self.text_tower is not None:
            text = torch.ones(1, 2, dtype=torch.long, device=device)
        return image, text


class LockedTowers:
    """The frozen half of a step: features of locked towers, everything else handed through."""

    def __init__(self, model: FlexiCLIP, bf16: bool, text_features: TextFeatures | None = None) -> None:
        self.image_tower = model.image_tower if model.config.image.frozen else None
        self.text_tower = model.text_tower if model.config.text_frozen else None
        self.bf16, self.preprocess, self.text_features = bf16, model.config.preprocess, text_features

    @torch.no_grad()
    def __call__(self, images: Tensor, tokens: Tensor, caption_ids: Tensor, seqhw: int) -> tuple[Tensor, Tensor]:
        """images [B, 3, H, W] uint8, tokens [B, L], caption_ids [B] -> what Towers takes."""
        image, text = images, tokens
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            if self.image_tower is not None:
                image = self.image_tower(normalize(images, self.preprocess.mean, self.preprocess.std), seqhw).float()
            if self.text_features is not None:
                text = self.text_features(caption_ids).to(images.device)
            elif self.text_tower is not None:
                text = self.text_tower(tokens).float()
        return image, text


class TextFeatures:
    """Features of every training caption from a locked text tower, computed once: caption id -> row."""

    def __init__(self, ids: Tensor, rows: Tensor) -> None:
        """ids: [M] int64, ascending. rows: [M, width] float32, on the CPU."""
        self.ids, self.rows = ids, rows

    def __call__(self, caption_ids: Tensor) -> Tensor:
        """caption_ids [B] -> [B, width]."""
        return self.rows[torch.searchsorted(self.ids, caption_ids.cpu())]
