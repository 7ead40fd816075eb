"""The plan's formulas one by one, on numbers that are worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kit.plans import DEVICE, IMAGE, SENT, TEXT, WORLD, config_of, counted

from flexiclip.config import EngineConfig, LossConfig, PatchConfig
from flexiclip.models.flops import loss_flops
from flexiclip.plan.hardware import GB, device_of
from flexiclip.plan.memory import Memory, step_memory
from flexiclip.plan.plan import Cluster, make_plan, update_s, visible_traffic_s
from flexiclip.plan.states import Engine, States, states
from flexiclip.plan.towers import Model, build
from flexiclip.plan.traffic import Collective, seconds, step_collectives

MIB = 1 << 20


def memory(states: States) -> Memory:
    return Memory(states, inputs=0, embeddings=0, activations=0, peak=0)


def test_update_s_reads_and_writes_what_is_kept_and_crosses_to_the_host() -> None:
    """2 x (300 + 200) bytes at 50 a second; the host's 100 bytes at 5 a second besides."""
    kept = States(parameters=1000, gradients=200, optimizer=300, buffers=7)
    assert update_s(memory(kept), DEVICE) == pytest.approx(20)
    assert update_s(memory(replace(kept, host=100)), DEVICE) == pytest.approx(20 + 20)
    offloaded = States(parameters=1000, gradients=0, optimizer=0, buffers=7, host=100)
    assert update_s(memory(offloaded), DEVICE) == pytest.approx(20)


def test_collectives_send_what_rings_send() -> None:
    """Of W = 4 ranks each sends 3/4 of the bytes, of an all-reduce twice that."""
    assert [c.sent(4) for c in SENT] == [30, 120, 15, 45]
    assert Collective("reduce_scatter", "loss", 40).sent(4) == 30
    assert [c.sent(1) for c in SENT] == [0, 0, 0, 0]


def test_seconds_are_those_of_the_slowest_link() -> None:
    """At 80 % of a link: 8 bytes a second inside a node, 2 between nodes."""
    engine = Engine("torch", 0, WORLD)
    assert seconds(SENT, engine, 1, DEVICE, "loss") == pytest.approx(30 / 8)
    assert seconds(SENT, engine, 2, DEVICE, "loss") == pytest.approx(30 / 2)
    assert seconds(SENT, engine, 1, DEVICE, "gradients", "gathers") == pytest.approx(135 / 8)


@pytest.mark.parametrize(
    ("stage", "towers_s", "count", "expected"),
    [
        (0, 0.0, 1, (30 + 45) / 8 + 135 / 8),  # nothing to hide behind
        (0, 9.0, 1, (30 + 45) / 8 + 135 / 8 - 6),  # two thirds of the time are the backward pass
        (0, 90.0, 1, (30 + 45) / 8),  # all of it is hidden; the loss's and the parameters' never are
        (0, 90.0, 10, (30 + 45) / 8 + 135 / 8 - 6),  # gradients leave with the last of ten micro-batches
        (1, 90.0, 10, (30 + 45) / 8 + 135 / 8 - 6),
        (2, 90.0, 10, (30 + 45) / 8),  # with every one
        (3, 9.0, 10, (30 + 45) / 8 + 135 / 8 - 6),
    ],
)
def test_visible_traffic_s_is_what_the_backward_pass_does_not_hide(
    stage: int, towers_s: float, count: int, expected: float
) -> None:
    engine = Engine("deepspeed", stage, WORLD)
    assert visible_traffic_s(SENT, engine, Cluster(1, WORLD, "cpu"), DEVICE, towers_s, count) == pytest.approx(expected)


@pytest.fixture(scope="module")
def model() -> Model:
    return build(config_of(replace(IMAGE, lock=True, unlock_last=2)))


@pytest.mark.parametrize(
    ("kind", "stage", "world", "gradients", "optimizer", "buffers"),
    [
        ("torch", 0, 1, lambda t, w: 4 * t, lambda t, w: 8 * t, lambda t: 0),
        ("torch", 0, 4, lambda t, w: 0, lambda t, w: 8 * t, lambda t: 4 * t),
        ("deepspeed", 0, 1, lambda t, w: 4 * t, lambda t, w: 8 * t, lambda t: 0),
        ("deepspeed", 0, 4, lambda t, w: 4 * t, lambda t, w: 8 * t, lambda t: 4 * t),
        ("deepspeed", 1, 4, lambda t, w: 4 * t + 4 * -(-t // w), lambda t, w: 12 * -(-t // w), lambda t: 2e9),
        ("deepspeed", 2, 4, lambda t, w: 4 * -(-t // w), lambda t, w: 12 * -(-t // w), lambda t: 2e9),
        ("deepspeed", 3, 4, lambda t, w: 4 * -(-t // w), lambda t, w: 12 * -(-t // w), lambda t: 2e9),
    ],
)
def test_states_of_each_engine(kind: str, stage: int, world: int, gradients, optimizer, buffers, model: Model) -> None:  # type: ignore[no-untyped-def]
    """The table of states.py, from the parameters of a real model."""
    whole, trained = counted()
    parameters = 4 * (whole + sum(p.numel() for p in model.module.scalars()))
    if stage == 3:  # its shard, and all of it while a step of one micro-batch runs
        parameters += 4 * -(-whole // world)
    expected = States(parameters, gradients(trained, world), optimizer(trained, world), int(buffers(trained)))
    assert states(model, Engine(kind, stage, world), several=False) == expected
    assert expected.device == expected.parameters + expected.optimizer + expected.buffers


def test_states_follow_the_settings_of_deepspeed(model: Model) -> None:
    narrow = Engine("deepspeed", 2, WORLD, settings={"reduce_bucket_size": 1000})
    assert states(model, narrow, several=False).buffers == 4000
    assert states(model, replace(narrow, settings={"reduce_bucket_size": 1000, "overlap_comm": True}), False).buffers == 8000
    assert states(model, replace(narrow, stage=3, settings={"reduce_bucket_size": 10, "overlap_comm": True}), False).buffers == 40
    assert Engine.of(EngineConfig(kind="torch", zero_stage=3), 8) == Engine("torch", 0, 8, settings={})


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offloaded_states_are_on_the_host(stage: int, model: Model) -> None:
    """optimizer: moments, copy and its gradients leave the device; parameters: ZeRO-3's shards too."""
    whole, trained = counted()
    plain = states(model, Engine("deepspeed", stage, WORLD), several=False)
    own, shard = 4 * -(-trained // WORLD), 4 * -(-whole // WORLD)
    there = states(model, Engine("deepspeed", stage, WORLD, "optimizer"), several=False)
    assert there == States(plain.parameters, plain.gradients - own, 0, plain.buffers, 4 * own)
    if stage == 3:
        there = states(model, Engine("deepspeed", stage, WORLD, "parameters"), several=False)
        assert there == States(plain.parameters - shard, plain.gradients - own, 0, plain.buffers, 4 * own + shard)


@pytest.mark.parametrize(
    ("kind", "stage", "micro_batches", "expected"),
    [
        ("torch", 0, 3, [("all_reduce", lambda p, t: t)]),
        ("deepspeed", 0, 3, [("all_reduce", lambda p, t: t)]),
        ("deepspeed", 1, 3, [("all_reduce", lambda p, t: t), ("all_gather", lambda p, t: t)]),
        ("deepspeed", 2, 3, [("all_reduce", lambda p, t: 3 * t), ("all_gather", lambda p, t: t)]),
        ("deepspeed", 3, 3, [("reduce_scatter", lambda p, t: 3 * t), ("all_gather", lambda p, t: 3 * (2 * p + t))]),
        ("deepspeed", 3, 1, [("reduce_scatter", lambda p, t: t), ("all_gather", lambda p, t: p)]),
    ],
)
def test_step_collectives_of_each_engine(kind: str, stage: int, micro_batches: int, expected, model: Model) -> None:  # type: ignore[no-untyped-def]
    """The table of traffic.py: 4 pairs of 32 columns for the loss, then the engine's."""
    whole, trained = counted()
    found = [(c.kind, c.bytes) for c in step_collectives(model, Engine(kind, stage, WORLD), micro_batches)]
    loss = [("all_gather", 4 * 4 * 32), ("reduce_scatter", 4 * 4 * 32), ("all_reduce", 4 * (3 + 2 * 4))]
    assert found == loss + [(name, 4 * elements(whole, trained)) for name, elements in expected]
    assert step_collectives(model, Engine(kind, stage, 1), micro_batches) == []


def test_the_loss_sends_what_its_kind_needs() -> None:
    config = config_of()
    sigmoid = build(replace(config, loss=LossConfig(kind="sigmoid")))
    assert step_collectives(sigmoid, Engine("torch", 0, 2), 1)[2].bytes == 4 * 3
    masked = step_collectives(build(replace(config, loss=LossConfig(mask_identical=True))), Engine("torch", 0, 2), 1)
    assert (masked[1].kind, masked[1].bytes) == ("all_gather", 8 * 4)


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


def test_devices_are_those_of_the_data_sheets() -> None:
    h100, a100 = device_of("h100", 8), device_of("a100", 8)
    assert (h100.peak("bf16"), h100.peak("fp32"), h100.memory, h100.memory_bandwidth) == (989e12, 67e12, 80e9, 3.35e12)
    assert (a100.peak("bf16"), a100.peak("fp32"), a100.memory, a100.memory_bandwidth) == (312e12, 19.5e12, 80e9, 2.039e12)
    assert [(d.node_link, d.network_link, d.host_link) for d in (h100, a100)] == [(450e9, 50e9, 50e9), (300e9, 25e9, 25e9)]
    assert device_of("h100", 8, 0.55).mfu == 0.55
    assert h100.mfu == a100.mfu == 0.4


def test_a_cpu_is_shared_by_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every figure of one rank is an even share of what is measured."""
    from flexiclip.plan import hardware

    monkeypatch.setattr(hardware, "_fastest", lambda run, repeats=4: 1e-3)
    one, four = (device_of("cpu", ranks) for ranks in (1, 4))
    assert one.fp32_flops == one.bf16_flops == 2 * 768**3 / 1e-3
    assert one.memory_bandwidth == one.node_link == one.host_link == 2 * 64 * MIB / 1e-3
    for name in ("bf16_flops", "fp32_flops", "memory", "memory_bandwidth", "node_link", "network_link", "host_link"):
        assert getattr(four, name) == getattr(one, name) / 4


def test_memory_of_a_rank_is_that_of_its_share() -> None:
    """Twice the ranks halve the batch of each, its inputs and its embeddings; what weights need stays."""
    config = config_of(global_batch_size=64)
    model = build(config)
    two, four = (step_memory(model, Engine("torch", 0, world), 4, 8, checkpointing=False) for world in (2, 4))
    assert two.inputs == 2 * four.inputs == 32 * (3 * 64 * 64 + 2 * 8 * 16)
    assert two.activations == four.activations
    assert two.states == four.states
