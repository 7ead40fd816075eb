"""Small models for the tests of the plan, built for real, and the planner's view of the same recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from flexiclip.config import Config, EngineConfig, ImageTowerConfig, ModelConfig, TextTowerConfig, TokenizerConfig, TrainConfig
from flexiclip.models.clip import FlexiCLIP
from flexiclip.models.text import build_text_tower
from flexiclip.plan.hardware import Device
from flexiclip.plan.traffic import Collective
from flexiclip.schedules import micro_batches, pair_tokens
from flexiclip.train.engine import Engine, ScalarOptimizer
from flexiclip.train.objectives import Contrastive, Inputs
from flexiclip.train.ranks import Ranks, RunContext
from flexiclip.train.step import Stepper

SIDE, WORDS = 64, 16
IMAGE = ImageTowerConfig(width=64, depth=4, heads=2, image_size=SIDE, base_patch_size=16, base_grid=4)
TEXT = TextTowerConfig(
    width=64, depth=2, heads=2, vocab_size=96, pad_id=0, eos_id=1, context_length=WORDS, causal=True, pad_mask=False
)
ALONE = Ranks(0, 1, 0, torch.device("cpu"))


def config_of(
    image: ImageTowerConfig = IMAGE, text: TextTowerConfig = TEXT, engine: EngineConfig | None = None, **train: object
) -> Config:
    """A recipe of these towers; `train`: keys of its section."""
    section = replace(TrainConfig(global_batch_size=4, precision="fp32"), **train)  # type: ignore[arg-type]
    return Config(
        model=ModelConfig(image, text, embed_dim=32),
        tokenizer=TokenizerConfig(vocab_size=96, context_length=text.context_length or WORDS),
        train=section,
        engine=engine or EngineConfig(kind="torch"),
    )


def real_model(config: Config) -> FlexiCLIP:
    """The model with weights, ready to train."""
    torch.manual_seed(0)
    return FlexiCLIP(config.model, build_text_tower(config.model.text, pretrained=False)).train()


def context_of(config: Config, ranks: Ranks = ALONE) -> RunContext:
    """The context of a run that writes nothing."""
    return RunContext(ranks, config.train.precision == "bf16", Path())


def stepper(model: FlexiCLIP, engine: Engine, config: Config, ranks: Ranks = ALONE) -> Stepper:
    """The step of a run."""
    return Stepper(
        objective=Contrastive(model, config.loss, context_of(config, ranks).autocast),
        engine=engine,
        scalars=ScalarOptimizer(model.scalars(), config.optimizer, config.model.logit_scale_max),
        micro_batch=micro_batches(config.train, pair_tokens(config.model, config.tokenizer), ranks.world),
        seed=0,
        ranks=ranks,
    )


def inputs(config: Config, rows: int) -> Inputs:
    """Random pictures, and captions that fill their context."""
    text = config.model.text
    assert text is not None
    side = config.model.image.image_size
    images = torch.randint(0, 256, (rows, 3, side, side), dtype=torch.uint8)  # type: ignore[arg-type]
    tokens = torch.randint(2, 90, (rows, int(text.context_length or WORDS)))
    tokens[:, -1] = 1
    return Inputs(images, tokens, torch.arange(rows))


DEVICE = Device(
    name="made up",
    bf16_flops=200.0,
    fp32_flops=20.0,
    memory=1e9,
    memory_bandwidth=50.0,
    node_link=10.0,
    network_link=2.5,
    host_link=5.0,
    mfu=0.5,
    source="",
)
WORLD = 4
SENT = [
    Collective("all_gather", "loss", 40),
    Collective("all_reduce", "gradients", 80),
    Collective("all_gather", "gathers", 20),
    Collective("all_gather", "parameters", 60),
]


def counted() -> tuple[int, int]:
    """(parameters in the engine, those that train) of the same recipe, with weights; the loss has two scalars of its own."""
    real = real_model(config_of(replace(IMAGE, lock=True, unlock_last=2)))
    scalars = sum(p.numel() for p in real.scalars())
    whole = sum(p.numel() for p in real.parameters()) - scalars
    return whole, sum(p.numel() for p in real.parameters() if p.requires_grad) - scalars
