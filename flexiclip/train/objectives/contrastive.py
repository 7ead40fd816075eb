"""Two towers that learn to give an image and its caption the same embedding (arXiv 2103.00020, 2303.15343, 2111.07991)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from flexiclip.config import LossConfig
from flexiclip.losses import LOSSES, nested_loss
from flexiclip.models.clip import FlexiCLIP
from flexiclip.train.engines.towers import LockedTowers, Tensors, TextFeatures, Towers
from flexiclip.train.objectives.base import Inputs, Micro


class Contrastive:
    """See Objective. Every other pair of the global batch is a negative."""

    def __init__(self, model: FlexiCLIP, loss: LossConfig, bf16: bool, text_features: TextFeatures | None = None) -> None:
        """text_features: of a locked text tower, computed beforehand."""
        self.towers, self.scalars = Towers(model, bf16), model.scalars()
        self.locked = LockedTowers(model, bf16, text_features)
        self.config, self.widths = loss, loss.all_widths(model.config.embed_dim)

    def prepare(self, inputs: Inputs, seqhw: int) -> Micro:
        """See Objective."""
        image = self.locked.image(inputs.images, seqhw)
        text = self.locked.text(inputs.tokens, inputs.caption_ids)
        return Micro((image, text), (inputs.caption_ids,) if self.config.mask_identical else ())

    def loss(self, outputs: Tensors, targets: Tensors) -> Tensor:
        """See Objective. outputs: a zimg for each exit of the image tower and for its end, and ztxt, [b, embed_dim] unit rows.

        Exits and widths count alike: it is the mean over all of them.
        """
        caption_ids = targets[0] if targets else None
        *images, ztxt = outputs
        loss = partial(nested_loss, LOSSES[self.config.kind], self.widths)
        return torch.stack([loss(zimg, ztxt, *self.scalars, caption_ids=caption_ids) for zimg in images]).mean()
