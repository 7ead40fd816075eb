"""One CLIP model twice, as open_clip's and as ours with the same weights, and a training step of each.

Theirs is what open_clip_train's main.py and train.py do at world size 1: its CLIP and ClipLoss, torch's AdamW in two groups,
autocast for --precision amp_bf16, torch.compile of the whole model for --torchcompile. Ours is what `flexiclip train` runs:
Contrastive, Stepper and TorchEngine, with the clipping, the check for numbers that are not finite, and malloc set as the trainer
sets it; before a turn of theirs, malloc is set back and what ours keeps is given back (`before_turn`).
"""

from __future__ import annotations

import ctypes
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from flexiclip.config import Config, TokenizerConfig
from flexiclip.formats.imported import Imported
from flexiclip.formats.open_clip_reader import import_open_clip
from flexiclip.formats.run import build_imported
from flexiclip.model_folder import LoadedModel
from flexiclip.models.text.base import trim_padding
from flexiclip.train.blocks import give_back_freed_memory, keep_freed_memory, prepare_blocks
from flexiclip.train.engine import ScalarOptimizer, TorchEngine
from flexiclip.train.objectives import Contrastive, Inputs
from flexiclip.train.ranks import Ranks
from flexiclip.train.step import Stepper

IMAGE_SIZE, PATCH, CONTEXT, VOCABULARY, DEPTH = 240, 16, 77, 49_408, 12
SEQHW = IMAGE_SIZE // PATCH
WIDTHS = {"Ti": 192, "S": 384}
LR = 5e-4  # open_clip's for ViTs, as its betas and decay below
BETAS, EPS, DECAY = (0.9, 0.98), 1e-6, 0.2
ALONE = Ranks(rank=0, world=1, local_rank=0, device=torch.device("cpu"))


@dataclass(frozen=True)
class Work:
    """What both sides are handed: pixels as each side's loader gives them, and captions by the same tokenizer."""

    pixels: Tensor  # [B, 3, H, W] uint8
    normalized: Tensor  # the same, float32, normalised
    tokens: Tensor  # [B, 77] int64, padded


def architecture(variant: str) -> dict[str, Any]:
    """open_clip's model_cfg: its ViT-S-16.json at another width and at 240 px."""
    width = WIDTHS[variant]
    heads = width // 64
    text = {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": width, "heads": heads, "layers": DEPTH}
    vision = {"image_size": IMAGE_SIZE, "patch_size": PATCH, "width": width, "layers": DEPTH}
    return {"embed_dim": width, "vision_cfg": vision, "text_cfg": text}


def their_model(variant: str) -> Any:
    """open_clip's CLIP, initialised by it."""
    import open_clip

    torch.manual_seed(0)
    return open_clip.CLIP(**architecture(variant), output_dict=True)


def read_as_ours(variant: str, state: dict[str, Tensor]) -> Imported:
    """A state dict of `their_model` through our importer: open_clip_config.json and weights in a folder."""
    logging.getLogger().setLevel(logging.ERROR)
    with TemporaryDirectory() as folder:
        said = {"model_cfg": architecture(variant), "preprocess_cfg": {}}
        (Path(folder) / "open_clip_config.json").write_text(json.dumps(said), encoding="utf-8")
        torch.save(state, Path(folder) / "open_clip_pytorch_model.bin")
        return import_open_clip(f"local-dir:{folder}")


def our_model(variant: str, theirs: Any) -> LoadedModel:
    """Our model with their weights and CLIP's tokenizer, in training mode."""
    tokenizer = TokenizerConfig(kind="clip", context_length=CONTEXT)  # the folder, whose own it names, is gone
    loaded = build_imported(replace(read_as_ours(variant, theirs.state_dict()), tokenizer=tokenizer), "open_clip's")
    loaded.model.train()
    return loaded


def our_stepper(
    loaded: LoadedModel, *, precision: str = "fp32", compiled: bool = False, grad_clip: float | None = 1.0
) -> Stepper:
    """The step that `flexiclip train` would run, with open_clip's optimiser settings."""
    config: Config = loaded.config
    optimizer = replace(config.optimizer, lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY, grad_clip=grad_clip)
    train = replace(config.train, precision=precision, compile=compiled)  # type: ignore[arg-type]
    config = replace(config, optimizer=optimizer, train=train)
    model = loaded.model
    prepare_blocks([model.image_tower, model.text_tower], config, ALONE.device)
    objective = Contrastive(model, config.loss, bf16=precision == "bf16")
    return Stepper(
        objective=objective,
        engine=TorchEngine(objective.towers, config, ALONE),
        scalars=ScalarOptimizer(objective.scalars, config.optimizer, config.model.logit_scale_max),
        micro_batch=lambda _: 1 << 30,
        seed=0,
        ranks=ALONE,
    )


def our_step(loaded: LoadedModel, work: Work, **settings: Any) -> Callable[[], float]:
    """One step of ours -> its loss. The columns that are padding in every row are cut, as the loader does."""
    tower, stepper = loaded.model.text_tower, our_stepper(loaded, **settings)
    assert tower.trims
    inputs = Inputs(work.pixels, trim_padding(work.tokens, tower.pad_id).contiguous(), torch.arange(len(work.tokens)))
    return lambda: stepper(inputs, SEQHW, step=0, lr=LR).loss


def their_step(
    model: Any, work: Work, *, precision: str = "fp32", compiled: bool = False, fused: bool = False
) -> Callable[[], float]:
    """One step of theirs (train_one_epoch, accum_freq 1) -> its loss. fused: AdamW's fused kernel, which main.py leaves out."""
    import open_clip
    from open_clip_train.precision import get_autocast

    def excluded(name: str, p: Tensor) -> bool:  # main.py
        return p.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))

    named = list(model.named_parameters())
    groups = [
        {"params": [p for name, p in named if excluded(name, p)], "weight_decay": 0.0},
        {"params": [p for name, p in named if not excluded(name, p)], "weight_decay": DECAY},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS, fused=fused or None)
    autocast = get_autocast("amp_bf16" if precision == "bf16" else "fp32", device_type="cpu")
    loss, run = open_clip.ClipLoss(), torch.compile(model) if compiled else model
    model.train()

    def step() -> float:
        optimizer.zero_grad()
        with autocast():
            out = run(work.normalized, work.tokens)
            total = sum(loss(**out, output_dict=True).values())
        total.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        return float(total.detach())

    return step


def before_turn(kept: bool) -> None:
    """malloc as the trainer sets it, or as glibc has it and with nothing kept of what other turns have freed."""
    if kept:
        keep_freed_memory()
    elif give_back_freed_memory():
        ctypes.CDLL(None).malloc_trim(0)
