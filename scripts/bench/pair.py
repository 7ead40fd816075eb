"""Builds one CLIP model in open_clip and in flexiclip, and a training step of each, and checks that both agree.

open_clip's step does what open_clip_train's main.py and train.py do at world size 1: its CLIP and ClipLoss, torch's AdamW in two
groups, autocast for --precision amp_bf16, and torch.compile of the whole model for --torchcompile. Our step is that of
`flexiclip train`: Contrastive, Stepper and TorchEngine, with clipping, the check for numbers that are not finite, and the
trainer's setting of malloc. Before a turn of open_clip, malloc is reset and the memory that it kept is released (`before_turn`).
"""

from __future__ import annotations

import ctypes
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
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
from flexiclip.train.step import Stepper
from scripts.bench.training import ALONE

IMAGE_SIZE, PATCH, CONTEXT, VOCABULARY, DEPTH = 240, 16, 77, 49_408, 12
SEQHW = IMAGE_SIZE // PATCH
WIDTHS = {"Ti": 192, "S": 384}
LR = 5e-4  # open_clip's value for ViTs, as are the betas, eps and decay below
BETAS, EPS, DECAY = (0.9, 0.98), 1e-6, 0.2
TOLERANCE = 1e-4
"""Largest allowed difference of the loss, and of a gradient relative to the largest element in its tensor, in float32."""


@dataclass(frozen=True)
class Work:
    """A batch for both sides: pixels as each side's loader gives them, and captions from the same tokenizer."""

    pixels: Tensor  # [B, 3, H, W] uint8, for flexiclip
    normalized: Tensor  # the same as normalized float32, for open_clip
    tokens: Tensor  # [B, 77] int64, padded


def architecture(variant: str) -> dict[str, Any]:
    """Return a model_cfg of open_clip: its ViT-S-16.json at another width and at 240 px."""
    width = WIDTHS[variant]
    heads = width // 64
    text = {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": width, "heads": heads, "layers": DEPTH}
    vision = {"image_size": IMAGE_SIZE, "patch_size": PATCH, "width": width, "layers": DEPTH}
    return {"embed_dim": width, "vision_cfg": vision, "text_cfg": text}


def their_model(variant: str) -> Any:
    """Return open_clip's CLIP with its own random initialization."""
    import open_clip

    torch.manual_seed(0)
    return open_clip.CLIP(**architecture(variant), output_dict=True)


def read_as_ours(variant: str, state: dict[str, Tensor]) -> Imported:
    """Import a state dict of `their_model` with our importer, from a folder with open_clip_config.json and the weights."""
    logging.getLogger().setLevel(logging.ERROR)
    with TemporaryDirectory() as folder:
        said = {"model_cfg": architecture(variant), "preprocess_cfg": {}}
        (Path(folder) / "open_clip_config.json").write_text(json.dumps(said), encoding="utf-8")
        torch.save(state, Path(folder) / "open_clip_pytorch_model.bin")
        return import_open_clip(f"local-dir:{folder}")


def our_model(variant: str, theirs: Any) -> LoadedModel:
    """Return our model with their weights and CLIP's tokenizer, in training mode."""
    tokenizer = TokenizerConfig(kind="clip", context_length=CONTEXT)  # the imported one names a folder that is gone
    loaded = build_imported(replace(read_as_ours(variant, theirs.state_dict()), tokenizer=tokenizer), "open_clip's")
    loaded.model.train()
    return loaded


def our_stepper(
    loaded: LoadedModel, *, precision: str = "fp32", compiled: bool = False, grad_clip: float | None = 1.0
) -> Stepper:
    """Return the step of `flexiclip train`, with open_clip's optimizer settings."""
    config: Config = loaded.config
    optimizer = replace(config.optimizer, lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY, grad_clip=grad_clip)
    train = replace(config.train, precision=precision, compile=compiled)  # type: ignore[arg-type]
    config = replace(config, optimizer=optimizer, train=train)
    model = loaded.model
    prepare_blocks([model.image_tower, model.text_tower], config.train, ALONE.device)
    objective = Contrastive(model, config.loss, partial(torch.autocast, "cpu", torch.bfloat16, enabled=precision == "bf16"))
    return Stepper(
        objective=objective,
        engine=TorchEngine(objective.towers, config.optimizer, ALONE),
        scalars=ScalarOptimizer(objective.scalars, config.optimizer, config.model.logit_scale_max),
        micro_batch=lambda _: 1 << 30,
        seed=0,
        ranks=ALONE,
    )


def our_step(loaded: LoadedModel, work: Work, **settings: Any) -> Callable[[], float]:
    """Return a function that takes one of our steps and returns its loss.

    Columns that are padding in every row are cut, as the loader does.
    """
    tower, stepper = loaded.model.text_tower, our_stepper(loaded, **settings)
    assert tower.trims
    inputs = Inputs(work.pixels, trim_padding(work.tokens, tower.pad_id).contiguous(), torch.arange(len(work.tokens)))
    return lambda: stepper(inputs, SEQHW, step=0, lr=LR).loss


def their_step(
    model: Any, work: Work, *, precision: str = "fp32", compiled: bool = False, fused: bool = False
) -> Callable[[], float]:
    """Return a function that takes one of open_clip's steps (train_one_epoch with accum_freq 1) and returns its loss.

    fused: use AdamW's fused kernel, which open_clip's main.py does not.
    """
    import open_clip
    from open_clip_train.precision import get_autocast

    def excluded(name: str, p: Tensor) -> bool:  # as in open_clip's main.py
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
    """Set malloc as the trainer does if `kept`. Otherwise restore glibc's defaults and release all freed memory."""
    if kept:
        keep_freed_memory()
    elif give_back_freed_memory():
        ctypes.CDLL(None).malloc_trim(0)


def their_gradients(variant: str, model: Any, work: Work) -> tuple[float, dict[str, Tensor]]:
    """Return open_clip's loss, and its gradients by our names.

    The importer is linear in the weights, so it converts gradients in the same way.
    """
    import open_clip

    model.zero_grad(set_to_none=True)
    loss = open_clip.ClipLoss()(**model(work.normalized, work.tokens))
    loss.backward()
    mapped = read_as_ours(variant, {name: p.grad for name, p in model.named_parameters()}).state
    model.zero_grad(set_to_none=True)
    # Our class token is the sum of their token and its position. Both have the gradient of the sum, so the importer doubles it.
    return loss.item(), mapped | {"image_tower.cls": mapped["image_tower.cls"] / 2}


def our_gradients(variant: str, model: Any, work: Work) -> tuple[float, dict[str, Tensor]]:
    """Return our loss, and the gradients g of a step, from its first moments (1 - beta1) g."""
    loaded = our_model(variant, model)
    stepper, tower = our_stepper(loaded, grad_clip=None), loaded.model.text_tower
    inputs = Inputs(work.pixels, trim_padding(work.tokens, tower.pad_id), torch.arange(len(work.tokens)))
    loss = stepper(inputs, SEQHW, step=0, lr=0.0).loss
    moments = {name.removeprefix("exp_avg/"): m for name, m in stepper.engine.moments() if name.startswith("exp_avg/")}
    moments["logit_scale"] = stepper.scalars.state()["exp_avg/0"]
    return loss, {name: moment / (1 - BETAS[0]) for name, moment in moments.items()}


def largest_difference(variant: str, model: Any, work: Work) -> tuple[float, float]:
    """Return the difference of the losses and the largest one of the gradients, relative to the largest element of their tensor.

    Raises ValueError if one exceeds TOLERANCE.
    """
    (their_loss, theirs), (our_loss, ours) = their_gradients(variant, model, work), our_gradients(variant, model, work)
    if theirs.keys() != ours.keys():
        raise ValueError(f"parameters of one side alone: {sorted(theirs.keys() ^ ours.keys())}")
    apart = {name: float((ours[name] - g).abs().max() / g.abs().max().clamp_min(1e-12)) for name, g in theirs.items()}
    worst = max(apart, key=lambda name: apart[name])
    if abs(their_loss - our_loss) > TOLERANCE or apart[worst] > TOLERANCE:
        raise ValueError(f"losses {our_loss} and {their_loss}; gradients of {worst} differ by {apart[worst]:.1e} of the largest")
    return abs(their_loss - our_loss), apart[worst]
