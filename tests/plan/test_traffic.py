"""The plan's traffic and ZeRO shards against what real engines send and hold, on two and three ranks over gloo, and by hand."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.launch import run_ranks
from kit.plans import DEVICE, IMAGE, SENT, TEXT, WORLD, config_of, counted, inputs, real_model, stepper

from flexiclip.config import Config, EngineConfig, LossConfig
from flexiclip.plan.states import Engine, gathered, states
from flexiclip.plan.towers import Model, build
from flexiclip.plan.traffic import Collective, seconds, step_collectives, visible_traffic_s

ROWS = 4
"""Of a rank."""
# Parameters below a threshold stay whole on every rank; at 0 even a small model's are sharded.
_SHARDED = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
ENGINES: dict[str, EngineConfig] = {
    "torch": EngineConfig(kind="torch"),
    **{f"zero{stage}": EngineConfig(zero_stage=stage) for stage in (0, 1, 2)},  # type: ignore[arg-type]
    "zero3": EngineConfig(zero_stage=3, deepspeed=_SHARDED),
}


def recipe(engine: str, micro: int, world: int) -> Config:
    """Both towers; of the image tower the last blocks only, but under ZeRO-3, counted high where blocks are frozen."""
    image = IMAGE if engine == "zero3" else replace(IMAGE, lock=True, unlock_last=3)
    return config_of(image, TEXT, ENGINES[engine], global_batch_size=ROWS * world, micro_batch_size=micro)


def run_engine(engine_name: str, micro: int, out: str) -> int:
    """On a rank: three steps, then one whose collectives are counted; rank 0 leaves the numbers in a file."""
    from torch.profiler import ProfilerActivity, profile

    from flexiclip.train.deepspeed import DeepSpeedEngine
    from flexiclip.train.engine import TorchEngine
    from flexiclip.train.ranks import joined_ranks
    from flexiclip.train.towers import Towers

    with joined_ranks(engine_name != "torch", 1) as ranks:
        config = recipe(engine_name, micro, ranks.world)
        model = real_model(config)
        towers = Towers(model)
        engine: Any
        if engine_name == "torch":
            engine = TorchEngine(towers, config.optimizer, ranks)
        else:
            engine = DeepSpeedEngine(towers, config.engine, config.train, config.optimizer, min(config.patch.all_seqhw), ranks)
        step, given = stepper(model, engine, config, ranks), inputs(config, ROWS)
        for number in range(3):
            step(given, 4, number, 1e-3)
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as prof:
            step(given, 4, 3, 1e-3)
        if ranks.main:
            inner = engine.optimizer if engine_name == "torch" else engine._inner()
            Path(out).write_text(json.dumps({**held(engine.optimizer, inner, model), "sent": elements(prof, ranks.world)}))
    return 0


def held(outer: Any, inner: torch.optim.Optimizer, model: torch.nn.Module) -> dict[str, int]:
    """Bytes that a rank keeps between the steps: moments, what the optimiser updates, and the model's parameters.

    outer: DeepSpeed's optimiser around `inner`; at stage 3 it hands the copies of the weights over in its step alone.
    """
    moments = sum(t.numel() * 4 for state in inner.state.values() for t in state.values() if t.ndim)
    copies = getattr(outer, "fp32_partitioned_groups_flat", None)
    updated = sum(p.numel() * 4 for p in copies or [p for group in inner.param_groups for p in group["params"]])
    stored: dict[int, int] = {}
    for parameter in model.parameters():
        storage = getattr(parameter, "ds_tensor", parameter).untyped_storage()  # of ZeRO-3 the rank's part
        stored[storage.data_ptr()] = storage.nbytes()
    return {"moments": moments, "updated": updated, "parameters": sum(stored.values())}


def elements(prof: Any, world: int) -> dict[str, int]:
    """Elements of the whole tensor of each kind of collective: gloo's own events name the tensors."""
    found: Counter[str] = Counter()
    for event in prof.events():
        shapes = event.input_shapes
        if event.name == "gloo:all_gather":
            found["all_gather"] += world * numel(shapes[0])
        elif event.name == "gloo:all_reduce":
            found["all_reduce"] += numel(shapes[0])
        elif event.name == "c10d::_reduce_scatter_base_":
            found["reduce_scatter"] += numel(shapes[1])
            found["all_reduce"] -= numel(shapes[1])  # gloo does it as an all-reduce
    return dict(found)


def numel(shape: list[int]) -> int:
    """Elements; a shape [] is a scalar, one element."""
    return int(torch.Size(shape).numel())


QUICK = [("torch", 4, 2), ("zero2", 2, 2), ("zero3", 2, 2)]
REST = [(name, micro, 2 + (e + m) % 2) for (e, name), (m, micro) in product(enumerate(ENGINES), enumerate((4, 2, 1)))]
"""Each engine with each size of micro-batch, and the number of ranks in turn, so that every pair is tested."""
CASES = [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in REST if case not in QUICK)]


@pytest.mark.parametrize(("engine", "micro", "world"), CASES)
def test_step_collectives_and_states_are_what_engines_send_and_hold(engine: str, micro: int, world: int, tmp_path: Path) -> None:
    """Bytes by kind of collective to 1 %: partitions are padded, and DeepSpeed sends a few flags and norms besides.

    ZeRO-3's gathers are an upper bound: what is still whole from the pass before is not gathered again.
    """
    out = tmp_path / "numbers.json"
    codes = run_ranks(world, tmp_path / "log", run_engine, engine, micro, str(out))
    assert codes == [0] * world, (tmp_path / "log.0").read_text()[-2000:]
    numbers = json.loads(out.read_text())

    config = recipe(engine, micro, world)
    model, planned = build(config), Engine.of(config.engine, world)
    expected: Counter[str] = Counter()
    for collective in step_collectives(model, planned, -(-ROWS // micro)):
        expected[collective.kind] += collective.bytes // 4
    print(f"{engine}, {world} ranks, micro-batches of {micro}: planned {dict(expected)}, counted {numbers['sent']}")
    assert expected.keys() == {kind for kind, count in numbers["sent"].items() if count > 4}
    for kind, count in expected.items():
        counted = numbers["sent"][kind]
        if planned.stage == 3 and kind == "all_gather":
            assert 0.85 * count <= counted <= 1.01 * count
        elif kind != "all_reduce" or count > 100:  # under ZeRO-3 the scalars' alone, beside DeepSpeed's flags
            assert count == pytest.approx(counted, rel=0.01), kind
    kept = states(model, planned, several=micro < ROWS)
    if planned.stage == 0:
        assert numbers["moments"] == 2 * numbers["updated"]  # the optimiser updates the model's own parameters
        assert kept.optimizer == pytest.approx(numbers["moments"], rel=1e-3)
    else:  # it updates a copy of them
        assert kept.optimizer == pytest.approx(numbers["moments"] + numbers["updated"], rel=1e-3)
    whole = 4 * gathered(model, planned, several=micro < ROWS) if planned.stage == 3 else 0  # while the model runs
    assert kept.parameters - whole == pytest.approx(numbers["parameters"], rel=1e-3)


def test_what_zero_3_gathers() -> None:
    """All at once for one micro-batch, the prefetch and a block for several, never more than there is."""
    model, engine = build(config_of()), Engine("deepspeed", 3, 8)
    assert gathered(model, engine, several=False) == model.total("in_engine")
    assert gathered(model, engine, several=True) == model.total("in_engine")
    narrow = replace(engine, settings={"stage3_prefetch_bucket_size": 0})
    assert gathered(model, narrow, several=True) == 4 * 64 * 64 + 2 * 64 * 256


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
    assert visible_traffic_s(SENT, engine, 1, DEVICE, towers_s, count) == pytest.approx(expected)


@pytest.fixture(scope="module")
def model() -> Model:
    return build(config_of(replace(IMAGE, lock=True, unlock_last=2)))


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
