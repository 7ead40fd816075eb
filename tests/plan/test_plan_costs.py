"""The plan's formulas one by one, on numbers that are worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kit.plans import DEVICE, IMAGE, TEXT, config_of

from flexiclip.config import EngineConfig, LossConfig, PatchConfig
from flexiclip.models.flops import loss_flops
from flexiclip.plan.hardware import GB
from flexiclip.plan.memory import Memory, step_memory
from flexiclip.plan.plan import Cluster, make_plan, update_s
from flexiclip.plan.states import Engine, States, states
from flexiclip.plan.towers import build
from flexiclip.plan.traffic import step_collectives


def memory(states: States) -> Memory:
    return Memory(states, inputs=0, embeddings=0, activations=0, peak=0)


def test_update_s_reads_and_writes_what_is_kept_and_crosses_to_the_host() -> None:
    """2 x (300 + 200) bytes at 50 a second; the host's 100 bytes at 5 a second besides."""
    kept = States(parameters=1000, gradients=200, optimizer=300, buffers=7)
    assert update_s(memory(kept), DEVICE) == pytest.approx(20)
    assert update_s(memory(replace(kept, host=100)), DEVICE) == pytest.approx(20 + 20)
    offloaded = States(parameters=1000, gradients=0, optimizer=0, buffers=7, host=100)
    assert update_s(memory(offloaded), DEVICE) == pytest.approx(20)


def test_loss_flops_by_hand() -> None:
    """Each rank's b images meet all b W captions in D columns: two products forward and two for the gradients, 2 each."""
    config = config_of()
    assert loss_flops(config, local=3, world=5) == 8 * 3 * 15 * 32
    assert loss_flops(replace(config, loss=LossConfig(kind="sigmoid")), 3, 5) == 6 * 3 * 15 * 32
    assert loss_flops(replace(config, loss=LossConfig(widths=(8, 16))), 3, 5) == 8 * 3 * 15 * (8 + 16 + 32)
    exits = config_of(replace(IMAGE, exits=(1, 3), exit_heads="separate"))
    assert loss_flops(exits, 3, 5) == 3 * 8 * 3 * 15 * 32


def test_hours_before_the_first_step_are_shared_by_all_ranks() -> None:
    """A million captions of a locked tower, a forward pass each, on 1 and on 8 GPUs at 40 % of 312 TFLOP/s."""
    config = replace(config_of(text=replace(TEXT, lock=True), global_batch_size=8, precision="bf16"), patch=PatchConfig((4,)))
    forward = build(config, 10**6).text_cost().tower.forward
    for gpus in (1, 8):
        plan = make_plan(config, Cluster(1, gpus, "a100"), samples=10**6)
        assert plan.text_features_hours == pytest.approx(10**6 * forward / (312e12 * 0.4 * gpus) / 3600, rel=1e-9)


def test_a_plan_adds_up_its_parts() -> None:
    """Of four H100 on two nodes: compute, then traffic that is not hidden, then the update."""
    engine = EngineConfig(zero_stage=1, offload="optimizer")
    config = replace(config_of(engine=engine, global_batch_size=16, micro_batch_size=2), patch=PatchConfig((4,)))
    plan = make_plan(config, Cluster(2, 2, "h100"))
    (length,) = plan.lengths
    model, of = build(config), Engine("deepspeed", 1, 4, "optimizer", {})
    flops = 4 * model.pair_flops(4, True).total
    compute = flops / (67e12 * 0.4) + loss_flops(config, 4, 4) / (67e12 * 0.4)
    assert (length.micro_batch, length.micro_batches) == (2, 2)
    assert length.compute_s == pytest.approx(compute, rel=1e-9)
    sent = {c.what: c.sent(4) for c in step_collectives(model, of, 2) if c.what != "loss"}
    loss = sum(c.sent(4) for c in step_collectives(model, of, 2) if c.what == "loss")
    link = 50 * GB * 0.8
    window = 2 / 3 * flops / (67e12 * 0.4) / 2
    traffic = (loss + sent["parameters"]) / link + max(0.0, sent["gradients"] / link - window)
    kept = states(model, of, several=True)
    update = 2 * kept.gradients / 3.35e12 + kept.host / (50 * GB)
    assert kept.host > 0
    assert length.network_s == pytest.approx(traffic + update, rel=1e-9)
    assert length.step_s == length.compute_s + length.network_s
    assert length.traffic == pytest.approx(loss + sum(sent.values()), abs=4)
    assert plan.images_per_s == pytest.approx(16 / length.step_s)
    assert plan.hours is not None
    assert plan.hours * 3600 / plan.steps == pytest.approx(length.step_s)  # type: ignore[operator]


def test_memory_of_a_rank_is_that_of_its_share() -> None:
    """Twice the ranks halve the batch of each, its inputs and its embeddings; what weights need stays."""
    config = config_of(global_batch_size=64)
    model = build(config)
    two, four = (step_memory(model, Engine("torch", 0, world), 4, 8, checkpointing=False) for world in (2, 4))
    assert two.inputs == 2 * four.inputs == 32 * (3 * 64 * 64 + 2 * 8 * 16)
    assert two.activations == four.activations
    assert two.states == four.states
