"""What each engine keeps of a model, from the parameters of a real one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kit.plans import IMAGE, WORLD, config_of, counted

from flexiclip.config import EngineConfig
from flexiclip.plan.states import Engine, States, states
from flexiclip.plan.towers import Model, build


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
