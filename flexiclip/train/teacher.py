"""The teacher of a distillation: a model folder that is frozen, in eval mode, whole on every rank and outside the engine.

It sees the student's crop and mixture at a length of its own (FunMatch, arXiv 2106.05237). Where its images are of another size
than the student's, its tower takes the student's: kernel and positions are resized to any grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flexiclip.config import Config
from flexiclip.config.validate import valid_seqhw
from flexiclip.data.images import normalize
from flexiclip.errors import UserError
from flexiclip.model_folder import LoadedModel, load_model
from flexiclip.train.towers import TextFeatures


def open_teacher(config: Config, device: torch.device) -> LoadedModel:
    """The model that `distillation.teacher` names. Raises UserError where it cannot teach the recipe's student."""
    where = f"distillation.teacher={config.distillation.teacher}"
    assert config.distillation.teacher is not None, "validate() demands it"
    teacher = load_model(config.distillation.teacher, device)
    theirs, ours = teacher.config.model, config.model
    if (theirs.text is None) != (ours.text is None):
        has = "an image tower alone" if theirs.text is None else "two towers"
        raise UserError(f"{where} is {has}, and the student, by model.text, is not: give both a text tower, or neither")
    if config.distillation.cosine and theirs.embed_dim != ours.embed_dim:
        raise UserError(
            f"distillation.cosine needs model.embed_dim={theirs.embed_dim}, that of {where}, or distillation.cosine=0"
        )
    if ours.classes is not None and isinstance(theirs.classes, tuple) and ours.classes != theirs.classes:
        raise UserError(f"model.classes are not those of {where}: leave them out, and the student takes the teacher's")
    teacher.model.requires_grad_(False)
    return teacher


def follow(config: Config, teacher: LoadedModel) -> Config:
    """The recipe with what the student takes from its teacher: the classes of a classifier, the scale of two towers' logits."""
    theirs, ours = teacher.config.model, config.model
    if ours.text is None:
        return replace(config, model=replace(ours, classes=theirs.classes, embed_dim=theirs.embed_dim))
    scale = float(teacher.model.logit_scale.detach().exp())
    largest = max(ours.logit_scale_max, scale)
    return replace(config, model=replace(ours, logit_scale_init=scale, logit_scale_max=largest))


def teacher_seqhw(config: Config, teacher: LoadedModel) -> int:
    """The grid side that the teacher runs at on the student's images. Raises UserError where it does not divide them."""
    asked = config.distillation.seqhw
    seqhw, valid = asked or max(teacher.config.trained_seqhw), valid_seqhw(config.model.image.image_size)
    if seqhw not in valid:
        whose = "" if asked else ", the longest that the teacher was trained at,"
        raise UserError(
            f"distillation.seqhw={seqhw}{whose} does not divide model.image.image_size={config.model.image.image_size}: "
            f"set one of {valid}"
        )
    return seqhw


class Teacher:
    """What the objectives ask of it."""

    def __init__(self, loaded: LoadedModel, seqhw: int, bf16: bool, text_features: TextFeatures | None = None) -> None:
        """text_features: its text tower's, where they were computed beforehand."""
        self.model, self.preprocess = loaded.model, loaded.config.model.preprocess
        self.tokenizer = loaded.model.text_tower.trimming(loaded.tokenizer)
        self.seqhw, self.bf16, self.text_features = seqhw, bf16, text_features

    @torch.no_grad()
    def image(self, images: Tensor, unit: bool) -> Tensor:
        """images [B, 3, H, W] uint8 -> outputs [B, D] float32; unit: of length 1."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            pixels = normalize(images, self.preprocess.mean, self.preprocess.std)
            return self.model.encode_image(pixels, self.seqhw, normalize=unit).float()

    @torch.no_grad()
    def text(self, captions: Sequence[str], caption_ids: Tensor) -> Tensor:
        """The captions and their ids [B], on the images' device -> unit embeddings [B, D] float32."""
        with torch.autocast(caption_ids.device.type, torch.bfloat16, enabled=self.bf16):
            rows = self.text_features(caption_ids) if self.text_features is not None else None
            if rows is not None:
                return self.model.project_text(rows.to(caption_ids.device))
            tokens = self.tokenizer(list(captions))  # with its own vocabulary, which need not be the student's
            return self.model.encode_text(tokens.to(caption_ids.device), normalize=True)
