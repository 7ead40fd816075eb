"""The plan's memory against torch's own account of what a step allocates: the profiler's, exact to the byte and free of noise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kit.plans import ALONE, IMAGE, TEXT, config_of, context_of, inputs, real_model, stepper
from torch.profiler import ProfilerActivity, profile

from flexiclip.config import Config
from flexiclip.models import attention
from flexiclip.plan.memory import _computed_bytes, _seen_bytes, step_memory
from flexiclip.plan.states import Engine
from flexiclip.plan.towers import build
from flexiclip.train.blocks import recompute_blocks
from flexiclip.train.engine import TorchEngine
from flexiclip.train.towers import Towers

WIDE = replace(IMAGE, width=192, depth=6, heads=3)
SMALL_TEXT = replace(TEXT, width=128, depth=3, heads=2)
ALONE_ENGINE = Engine("torch", 0, 1)


@pytest.fixture(autouse=True)
def _attention_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's kernel in bf16 too."""
    monkeypatch.setattr(attention, "PLAIN_UP_TO", 0)


def highest(deltas: list[int]) -> int:
    """The highest of the running sums."""
    held = top = 0
    for delta in deltas:
        held += delta
        top = max(top, held)
    return top


def allocations(prof: profile) -> list[int]:
    """Bytes of every allocation (above 0) and release (below), in order of time."""
    events = [event for event in prof.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


def measured_peak(config: Config, seqhw: int) -> int:
    """Bytes at the highest point of the second step: what the model, the optimiser and the batch hold, and what the step adds."""
    model = real_model(config)
    if config.train.activation_checkpointing:
        for tower in (model.image_tower, model.text_tower):
            recompute_blocks(tower)
    engine = TorchEngine(Towers(model, context_of(config).autocast), config.optimizer, ALONE)
    step = stepper(model, engine, config)
    given = inputs(config, config.train.global_batch_size)
    assert step(given, seqhw, 0, 1e-3).fault is None
    held = [*model.parameters(), *(t for state in engine.optimizer.state.values() for t in state.values())]
    held += [given.images, given.tokens, given.caption_ids]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        outcome = step(given, seqhw, 1, 1e-3)
    assert outcome.fault is None
    return sum(t.untyped_storage().nbytes() for t in held) + highest(allocations(prof))


def planned_peak(config: Config, seqhw: int) -> int:
    train = config.train
    model = build(config)
    micro = train.micro_batch_size or train.global_batch_size
    return step_memory(model, ALONE_ENGINE, seqhw, micro, train.activation_checkpointing).peak


CASES: dict[str, Config] = {
    "plain": config_of(WIDE, SMALL_TEXT, global_batch_size=64),
    "small batch": config_of(WIDE, SMALL_TEXT, global_batch_size=4),
    "bf16": config_of(WIDE, SMALL_TEXT, global_batch_size=64, precision="bf16"),
    "gradient cache": config_of(WIDE, SMALL_TEXT, global_batch_size=64, micro_batch_size=16),
    "bf16, gradient cache": config_of(WIDE, SMALL_TEXT, global_batch_size=64, micro_batch_size=16, precision="bf16"),
    "recomputed": config_of(WIDE, SMALL_TEXT, global_batch_size=64, activation_checkpointing=True),
    "bf16, recomputed": config_of(WIDE, SMALL_TEXT, global_batch_size=64, activation_checkpointing=True, precision="bf16"),
    "recomputed, gradient cache": config_of(
        WIDE, SMALL_TEXT, global_batch_size=64, micro_batch_size=16, activation_checkpointing=True
    ),
    "attention pool": config_of(replace(WIDE, pool="map"), replace(SMALL_TEXT, pool="map"), global_batch_size=64),
    "quick_gelu": config_of(replace(WIDE, activation="quick_gelu"), SMALL_TEXT, global_batch_size=64),
    "masked text": config_of(WIDE, replace(SMALL_TEXT, causal=False, pad_mask=True), global_batch_size=64),
    "last blocks": config_of(replace(WIDE, lock=True, unlock_last=2), SMALL_TEXT, global_batch_size=64),
    "image locked": config_of(replace(WIDE, lock=True), SMALL_TEXT, global_batch_size=64),
    "size S": config_of(
        replace(IMAGE, width=None, depth=None, heads=None, variant="S", image_size=240, base_patch_size=32, base_grid=7),
        SMALL_TEXT,
        global_batch_size=2,
    ),
}


ALL = [(name, seqhw) for name in CASES for seqhw in ((5, 15, 30) if name == "size S" else (2, 4, 8))]
QUICK = [("plain", 2), ("bf16, gradient cache", 4), ("recomputed", 4), ("last blocks", 4), ("small batch", 8)]
SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in ALL if case not in QUICK]


@pytest.mark.parametrize(("name", "seqhw"), [*QUICK, *SLOW])
def test_the_peak_of_a_step(name: str, seqhw: int) -> None:
    planned, measured = planned_peak(CASES[name], seqhw), measured_peak(CASES[name], seqhw)
    print(
        f"{name}, seqhw {seqhw}: planned {planned / 1e6:.2f} MB, measured {measured / 1e6:.2f} MB, {planned / measured - 1:+.1%}"
    )
    assert planned == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("seqhw", [2, 8])
def test_what_a_block_keeps_is_exact(precision: str, seqhw: int) -> None:
    """Bytes that autograd keeps of one more block, but for bf16 copies of the weights."""

    def kept(depth: int) -> int:
        config = config_of(replace(WIDE, depth=depth))
        tower = real_model(config).image_tower
        own = {p.untyped_storage().data_ptr() for p in (*tower.parameters(), *tower.buffers())}
        found: dict[int, int] = {}

        def pack(t: torch.Tensor) -> torch.Tensor:
            if t.untyped_storage().data_ptr() not in own:
                found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t)
        with hooks, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            output = tower(torch.randn(3, 3, 64, 64), seqhw)
        assert output.requires_grad
        return sum(found.values())

    size = 2 if precision == "bf16" else 4
    model = build(config_of(WIDE))
    copies = 2 * (4 * 192 * 192 + 2 * 192 * 768) if precision == "bf16" else 0
    bytes_a_token = _seen_bytes(model.image, size) + _computed_bytes(WIDE, model.image, size)
    assert kept(3) - kept(2) == 3 * seqhw**2 * bytes_a_token + copies
