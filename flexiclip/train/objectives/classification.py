"""An image tower alone that learns the classes of labelled images, to be a tower for LiT, a teacher, or a classifier.

flexiclip train openmoji_classify
"""

from __future__ import annotations

import torch
from torch import Tensor

from flexiclip.config import ClassificationConfig
from flexiclip.losses import CROSS_ENTROPIES
from flexiclip.models.clip import FlexiCLIP
from flexiclip.train.engines.towers import Classifier, LockedTowers, Tensors
from flexiclip.train.objectives.base import Inputs, Micro


class Classification:
    """See Objective. The head is the model's image projection."""

    def __init__(self, model: FlexiCLIP, config: ClassificationConfig, bf16: bool) -> None:
        self.towers, self.scalars = Classifier(model, bf16), ()
        self.locked, self.config, self.classes = LockedTowers(model, bf16), config, model.config.embed_dim

    def prepare(self, inputs: Inputs, seqhw: int) -> Micro:
        """See Objective."""
        targets = torch.zeros(len(inputs.images), self.classes, device=inputs.images.device)
        targets.scatter_add_(1, inputs.labels, inputs.shares)
        if self.config.loss == "softmax":
            targets /= targets.sum(1, keepdim=True)  # an image of several classes shares itself out
        smoothing = self.config.label_smoothing
        targets = (1 - smoothing) * targets + smoothing / self.classes
        return Micro((self.locked.image(inputs.images, seqhw),), (targets,))

    def loss(self, outputs: Tensors, targets: Tensors) -> Tensor:
        """See Objective. outputs: logits [b, C]; targets: the shares of the classes [b, C]."""
        return CROSS_ENTROPIES[self.config.loss](*outputs, *targets)
