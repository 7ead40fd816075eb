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

Tensors = tuple[Tensor, ...]


class Trained(nn.Module):
    """The image half of what is trained. forward: (*inputs, seqhw) -> float32 rows [B, D] of each half that there is.

    Images are normalised here, a micro-batch at a time: a whole batch as float32 would take four times its memory.
    """

    def __init__(self, model: FlexiCLIP, bf16: bool) -> None:
        super().__init__()
        self.bf16, self.preprocess = bf16, model.config.preprocess
        self.image_tower = None if model.config.image.frozen else model.image_tower
        self.image_width = model.image_tower.width
        self._project_image = model.project_image

    def image_exits(self, image: Tensor, seqhw: int) -> Tensor:
        """The features of every exit of the image tower and, last, of the whole tower, [E, B, width]."""
        if self.image_tower is None:
            return image[None]
        images = normalize(image, self.preprocess.mean, self.preprocess.std)
        return self.image_tower(images, seqhw, every_exit=True)

    def image_features(self, image: Tensor, seqhw: int) -> Tensor:
        """[B, 3, H, W] uint8, or the features of a locked tower -> features [B, width]."""
        if self.image_tower is None:
            return image
        return self.image_tower(normalize(image, self.preprocess.mean, self.preprocess.std), seqhw)

    def dummy_inputs(self, device: torch.device) -> Tensors:
        """The smallest valid inputs, for a pass whose result does not matter."""
        if self.image_tower is None:
            return (torch.zeros(1, self.image_width, device=device),)
        return (torch.zeros(1, 3, *self.image_tower.image_size, dtype=torch.uint8, device=device),)


class Classifier(Trained):
    """(image or image features, seqhw) -> logits [B, classes]: an image tower alone, whose projection is the head."""

    def __init__(self, model: FlexiCLIP, bf16: bool) -> None:
        super().__init__(model, bf16)
        self.image_projection = model.image_projection

    def forward(self, image: Tensor, seqhw: int) -> Tensors:
        """image [B, 3, H, W] uint8; a tower that is locked gets its features [B, width] in place of them."""
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.bf16):
            return (self._project_image(self.image_features(image, seqhw), normalize=False).float(),)


class Towers(Trained):
    """(image or image features, tokens or text features, seqhw) -> unit embeddings zimg, ztxt [B, embed_dim] float32.

    Where the image tower has exits, each of them has a zimg, in front of that of the whole tower.
    """

    def __init__(self, model: FlexiCLIP, bf16: bool) -> None:
        super().__init__(model, bf16)
        self.text_tower = None if model.config.text_frozen else model.text_tower
        self.image_projection, self.text_projection = model.image_projection, model.text_projection
        self.exit_projections, self._project_exits = model.exit_projections, model.project_exits
        self.text_width = model.text_tower.width
        self._project_text = model.project_text

    def forward(self, image: Tensor, text: Tensor, seqhw: int) -> Tensors:
        """image [B, 3, H, W] uint8, text [B, L] int64; a tower that is locked gets its features [B, width] in place of them."""
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.bf16):
            images = self._project_exits(self.image_exits(image, seqhw))
            if self.text_tower is not None:
                text = self.text_tower(text)
            return *images, self._project_text(text)

    def dummy_inputs(self, device: torch.device) -> Tensors:
        """See Trained."""
        text = torch.zeros(1, self.text_width, device=device)
        if self.text_tower is not None:
            text = torch.ones(1, 2, dtype=torch.long, device=device)
        return *super().dummy_inputs(device), text


class LockedTowers:
    """The frozen half of a step: features of locked towers, everything else handed through."""

    def __init__(self, model: FlexiCLIP, bf16: bool, text_features: TextFeatures | None = None) -> None:
        self.image_tower = model.image_tower if model.config.image.frozen else None
        self.text_tower = model.text_tower if model.config.text_frozen else None
        self.bf16, self.preprocess, self.text_features = bf16, model.config.preprocess, text_features

    @torch.no_grad()
    def image(self, images: Tensor, seqhw: int) -> Tensor:
        """images [B, 3, H, W] uint8 -> what Trained takes of them."""
        if self.image_tower is None:
            return images
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            return self.image_tower(normalize(images, self.preprocess.mean, self.preprocess.std), seqhw).float()

    @torch.no_grad()
    def text(self, tokens: Tensor, caption_ids: Tensor) -> Tensor:
        """tokens [B, L], caption_ids [B] -> what Towers takes of them."""
        rows = self.text_features(caption_ids) if self.text_features is not None else None
        if rows is not None:
            return rows.to(tokens.device)
        if self.text_tower is None:
            return tokens
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.bf16):
            return self.text_tower(tokens).float()


class TextFeatures:
    """Features of every training caption from a locked text tower, computed once: caption id -> row."""

    def __init__(self, ids: Tensor, rows: Tensor) -> None:
        """ids: [M] int64, ascending. rows: [M, width] float32, on the CPU."""
        self.ids, self.rows = ids, rows

    def __call__(self, caption_ids: Tensor) -> Tensor | None:
        """caption_ids [B] -> [B, width]; None where one of the captions could not be read when they were computed."""
        wanted = caption_ids.cpu()
        at = torch.searchsorted(self.ids, wanted).clamp(max=len(self.ids) - 1)
        return self.rows[at] if torch.equal(self.ids[at], wanted) else None
