"""The teacher of a distillation: a frozen model in eval mode, unsharded on every rank and outside of the engine.

It sees the same crops and mixtures as the student (FunMatch, arXiv 2106.05237), at a length of its own. If it was trained on
images of another size, it still takes the student's, because its kernel and positions are resized to any grid.
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
from flexiclip.model_folder import LoadedModel, load_parsed
from flexiclip.model_source import LOADED, parse_model
from flexiclip.train.towers import TextFeatures


def open_teacher(config: Config, device: torch.device) -> LoadedModel:
    """Return the model that `distillation.teacher` names, frozen. Raises UserError if it does not fit the recipe's student."""
    where = f"distillation.teacher={config.distillation.teacher}"
    assert config.distillation.teacher is not None, "validate() demands it"
    teacher = load_parsed(parse_model(config.distillation.teacher, LOADED, "distillation.teacher"), device)
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
    """Return the recipe with what the student takes from its teacher.

    A classifier takes the classes and embed_dim. Two towers take the initial scale of the logits.
    """
    theirs, ours = teacher.config.model, config.model
    if ours.text is None:
        return replace(config, model=replace(ours, classes=theirs.classes, embed_dim=theirs.embed_dim))
    scale = float(teacher.model.logit_scale.detach().exp())
    largest = max(ours.logit_scale_max, scale)
    return replace(config, model=replace(ours, logit_scale_init=scale, logit_scale_max=largest))


def teacher_seqhw(config: Config, teacher: LoadedModel) -> int:
    """Return the grid side of the teacher on the student's images. Raises UserError if it does not divide their size.

    It is distillation.seqhw, by default the longest length that the teacher was trained at.
    """
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
    """Computes the teacher's outputs for the objectives."""

    def __init__(self, loaded: LoadedModel, seqhw: int, bf16: bool, text_features: TextFeatures | None = None) -> None:
        """text_features: precomputed features of the teacher's text tower, if there are any."""
        self.model, self.preprocess = loaded.model, loaded.config.model.preprocess
        self.tokenizer = loaded.model.text_tower.trimming(loaded.tokenizer)
        self.seqhw, self.bf16, self.text_features = seqhw, bf16, text_features

    @torch.no_grad()
    def image(self, images: Tensor, unit: bool) -> Tensor:
        """Return the outputs [B, D] float32 for images [B, 3, H, W] uint8. unit: scale the rows to length 1."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            pixels = normalize(images, self.preprocess.mean, self.preprocess.std)
            return self.model.encode_image(pixels, self.seqhw, normalize=unit).float()

    @torch.no_grad()
    def text(self, captions: Sequence[str], caption_ids: Tensor) -> Tensor:
        """Return the embeddings [B, D] float32, rows of length 1, of captions whose ids are caption_ids [B].

        The result is on the device of caption_ids.
        """
        with torch.autocast(caption_ids.device.type, torch.bfloat16, enabled=self.bf16):
            rows = self.text_features(caption_ids) if self.text_features is not None else None
            if rows is not None:
                return self.model.project_text(rows.to(caption_ids.device))
            tokens = self.tokenizer(list(captions))  # the teacher's vocabulary may differ from the student's
            return self.model.encode_text(tokens.to(caption_ids.device), normalize=True)
