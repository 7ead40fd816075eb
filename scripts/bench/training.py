"""Builds a training step as the trainer does, on random pairs: both towers, the torch engine, the loss and its scalars."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch

from flexiclip.config import Config, ImageTowerConfig, LossConfig, ModelConfig, TextTowerConfig
from flexiclip.models.clip import FlexiCLIP
from flexiclip.models.text import TextTransformer
from flexiclip.train.engine import ScalarOptimizer, TorchEngine
from flexiclip.train.objectives import Contrastive, Inputs
from flexiclip.train.ranks import Ranks
from flexiclip.train.step import Stepper

IMAGE = 240  # pixels
TOKENS = 32  # per caption
VOCABULARY = 4096

ALONE = Ranks(rank=0, world=1, local_rank=0, device=torch.device("cpu"))
"""This process as the only rank."""


class Task(NamedTuple):
    """The model that is trained, with two towers of one variant at 240 px, and how it is trained."""

    variant: str = "Ti"
    micro_batch: int = 1 << 20
    bf16: bool = False


def make_model(variant: str) -> FlexiCLIP:
    """Return an untrained model whose image and text tower are of the same variant."""
    text = TextTowerConfig(variant=variant, vocab_size=VOCABULARY, pad_id=0, eos_id=1, context_length=TOKENS)
    return FlexiCLIP(ModelConfig(image=ImageTowerConfig(variant=variant), text=text), TextTransformer(text))


def make_stepper(task: Task, ranks: Ranks) -> Stepper:
    """Return a training step with the softmax loss, in which all other pairs are negatives."""
    model = make_model(task.variant)
    config = Config(model=model.config, loss=LossConfig(mask_identical=False))
    objective = Contrastive(model, config.loss, partial(torch.autocast, "cpu", torch.bfloat16, enabled=task.bf16))
    return Stepper(
        objective=objective,
        engine=TorchEngine(objective.towers, config.optimizer, ranks),
        scalars=ScalarOptimizer(model.scalars(), config.optimizer, config.model.logit_scale_max),
        micro_batch=lambda _: task.micro_batch,
        seed=0,
        ranks=ranks,
    )


def random_pairs(batch: int) -> Inputs:
    """Return random images, and captions of full length."""
    images = torch.randint(256, (batch, 3, IMAGE, IMAGE), dtype=torch.uint8)
    return Inputs(images, torch.randint(2, VOCABULARY, (batch, TOKENS)), torch.arange(batch))
