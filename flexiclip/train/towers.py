"""The modules that an engine trains: the towers and projections of a model, without frozen towers and without scalars.

A tower that is locked as a whole runs outside of the engine, under no_grad and in eval mode, so no engine shards, reduces or
updates it. The scalars of the loss have their own optimizer (ScalarOptimizer in engine.py). Parameters have the same names as in
the model, so that state by name fits both.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from flexiclip.data.images import normalize
from flexiclip.models.clip import FlexiCLIP

Tensors = tuple[Tensor, ...]

Autocast = Callable[[], AbstractContextManager[object]]
"""Returns a context manager that gives a forward pass its precision: RunContext.autocast, or nullcontext for float32."""


class Trained(nn.Module):
    """Base class of the trained modules, with the image tower. forward: (*inputs, seqhw) -> float32 rows [B, D] of each tower.

    Images are normalized here, one micro-batch at a time, because a whole batch in float32 would take four times its memory.
    """

    def __init__(self, model: FlexiCLIP, autocast: Autocast = nullcontext) -> None:
        super().__init__()
        self.autocast, self.preprocess = autocast, model.config.preprocess
        self.image_tower = None if model.config.image.frozen else model.image_tower
        self.image_width = model.image_tower.width
        self._project_image = model.project_image

    def image_exits(self, image: Tensor, seqhw: int) -> Tensor:
        """Return the features of every exit of the image tower and, last, of the whole tower, [E, B, width].

        image: [B, 3, H, W] uint8, or the features [B, width] of a locked tower, which are returned as the only ones.
        """
        if self.image_tower is None:
            return image[None]
        images = normalize(image, self.preprocess.mean, self.preprocess.std)
        return self.image_tower(images, seqhw, every_exit=True)

    def trained_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return the parameters that train, with their names."""
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad]

    def dummy_inputs(self, device: torch.device) -> Tensors:
        """Return the smallest valid inputs, for a pass whose result does not matter."""
        if self.image_tower is None:
            return (torch.zeros(1, self.image_width, device=device),)
        return (torch.zeros(1, 3, *self.image_tower.image_size, dtype=torch.uint8, device=device),)


class Classifier(Trained):
    """An image tower alone, whose projection is the head: (image or image features, seqhw) -> logits [B, C] float32."""

    def __init__(self, model: FlexiCLIP, autocast: Autocast = nullcontext) -> None:
        super().__init__(model, autocast)
        self.image_projection = model.image_projection

    def forward(self, image: Tensor, seqhw: int) -> Tensors:
        """Return the logits. image: [B, 3, H, W] uint8, or the features [B, width] of a locked tower."""
        with self.autocast():
            return (self._project_image(self.image_exits(image, seqhw)[-1], normalize=False).float(),)


class Towers(Trained):
    """An image and a text tower: (image or its features, tokens or text features, seqhw) -> zimg, ztxt [B, embed_dim] float32.

    The rows have length 1. If the image tower has exits, there is a zimg of each exit before that of the whole tower.
    """

    def __init__(self, model: FlexiCLIP, autocast: Autocast = nullcontext) -> None:
        super().__init__(model, autocast)
        self.text_tower = None if model.config.text_frozen else model.text_tower
        self.image_projection, self.text_projection = model.image_projection, model.text_projection
        self.exit_projections, self._project_exits = model.exit_projections, model.project_exits
        self.text_width = model.text_tower.width
        self._project_text = model.project_text

    def forward(self, image: Tensor, text: Tensor, seqhw: int) -> Tensors:
        """Return the embeddings. image: [B, 3, H, W] uint8. text: [B, L] int64. A locked tower gets its features [B, width]."""
        with self.autocast():
            images = self._project_exits(self.image_exits(image, seqhw))
            if self.text_tower is not None:
                text = self.text_tower(text)
            return *images, self._project_text(text)

    def dummy_inputs(self, device: torch.device) -> Tensors:
        """Return the smallest valid inputs, for a pass whose result does not matter."""
        text = torch.zeros(1, self.text_width, device=device)
        if self.text_tower is not None:
            text = torch.ones(1, 2, dtype=torch.long, device=device)
        return *super().dummy_inputs(device), text


class LockedTowers:
    """Runs the locked towers of a model. The inputs of other towers are returned unchanged."""

    def __init__(self, model: FlexiCLIP, autocast: Autocast = nullcontext, text_features: TextFeatures | None = None) -> None:
        self.image_tower = model.image_tower if model.config.image.frozen else None
        self.text_tower = model.text_tower if model.config.text_frozen else None
        self.autocast, self.preprocess, self.text_features = autocast, model.config.preprocess, text_features

    @torch.no_grad()
    def image(self, images: Tensor, seqhw: int) -> Tensor:
        """Return the input of Trained: images [B, 3, H, W] uint8, or the features [B, width] float32 of a locked tower."""
        if self.image_tower is None:
            return images
        with self.autocast():
            return self.image_tower(normalize(images, self.preprocess.mean, self.preprocess.std), seqhw).float()

    @torch.no_grad()
    def text(self, tokens: Tensor, caption_ids: Tensor) -> Tensor:
        """Return the input of Towers: tokens [B, L], or the features [B, width] float32 of a locked tower.

        caption_ids: [B] int64, which find the precomputed features.
        """
        rows = self.text_features(caption_ids) if self.text_features is not None else None
        if rows is not None:
            return rows.to(tokens.device)
        if self.text_tower is None:
            return tokens
        with self.autocast():
            return self.text_tower(tokens).float()


class TextFeatures:
    """Precomputed features of every training caption from a frozen text tower: caption id -> row."""

    def __init__(self, ids: Tensor, rows: Tensor) -> None:
        """ids: [M] int64, ascending. rows: [M, width] float32, on the CPU."""
        self.ids, self.rows = ids, rows

    def __call__(self, caption_ids: Tensor) -> Tensor | None:
        """Return the features [B, width] of caption_ids [B].

        Returns None if one of the captions is missing, because it could not be read when the features were computed.
        """
        wanted = caption_ids.cpu()
        at = torch.searchsorted(self.ids, wanted).clamp(max=len(self.ids) - 1)
        return self.rows[at] if torch.equal(self.ids[at], wanted) else None
