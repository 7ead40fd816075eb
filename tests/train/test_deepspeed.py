"""The engine, the number of ranks and the micro-batches change where a step is computed, not what it computes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from kit.alike import ENGINES, assert_same_training, assert_same_weights
from kit.launch import Trained

Fit = Callable[..., Trained]
MICRO = "train.micro_batch_size=2"


SLOW = [(3, "zero0"), (3, "zero1"), (3, "zero2"), (1, "zero1"), (1, "zero2"), (2, "zero1")]
EVERY = [
    pytest.param(world, engine, marks=[pytest.mark.slow] if (world, engine) in SLOW else [])
    for world in (1, 2, 3)
    for engine in ENGINES
]


@pytest.mark.parametrize(("world", "engine"), EVERY)
def test_every_engine_on_every_number_of_ranks_trains_alike(fit: Fit, reference: Trained, world: int, engine: str) -> None:
    run = fit(world, *ENGINES[engine])
    assert_same_training(run, reference)
    assert_same_weights(run, reference)


def test_bfloat16_trains_alike_within_its_rounding(fit: Fit) -> None:
    """bfloat16 keeps 8 bits, and a matrix product rounds otherwise for another number of rows. So two bf16 runs may differ from
    each other as much as each does from float32, which is the bound here. The low rate keeps training from amplifying it."""
    full = fit(1, "optimizer.lr=1e-4")
    half, shared = (
        fit(n, "optimizer.lr=1e-4", "train.precision=bf16", *e) for n, e in ((1, ()), (2, (*ENGINES["zero1"], MICRO)))
    )
    loss = np.abs(half.column("loss") - full.column("loss")).max()
    norm = np.abs(half.column("grad_norm") / full.column("grad_norm") - 1).max()
    assert 1e-4 < loss < 0.05
    assert norm < 0.1
    assert_same_training(shared, half, loss=loss, norm=norm)


SIGMOID = ["loss.kind=sigmoid", "model.logit_bias_init=-10"]


def test_sigmoid_loss_trains_alike_under_zero(fit: Fit) -> None:
    alone = fit(1, *SIGMOID)
    shared = fit(2, *SIGMOID, *ENGINES["zero2"], MICRO)
    assert_same_training(shared, alone)
    assert_same_weights(shared, alone)
    np.testing.assert_allclose(shared.column("logit_bias"), alone.column("logit_bias"), rtol=0, atol=1e-5)
    assert alone.column("logit_bias")[-1] != -10


@pytest.mark.parametrize("locked", ["image", pytest.param("text", marks=pytest.mark.slow)])
def test_a_locked_tower_stays_as_it_was_and_the_rest_trains_alike(fit: Fit, reference: Trained, locked: str) -> None:
    lock = [f"model.{locked}.lock=true", f"model.{locked}.init={reference.folder}", "seed=1"]
    alone = fit(1, *lock)
    initial = reference.weights()
    for name, tensor in alone.weights().items():
        if name.startswith(f"{locked}_tower."):
            assert (tensor == initial[name]).all(), name
    trained = [name for name, tensor in alone.weights().items() if not np.array_equal(tensor, initial[name])]
    assert f"{locked}_projection.weight" in trained
    assert len(trained) > 20
    for world, *overrides in ((2, *ENGINES["zero3"], MICRO), (1, *ENGINES["zero0"])):
        run = fit(world, *lock, *overrides)
        assert_same_training(run, alone)
        assert_same_weights(run, alone)


@pytest.mark.slow
def test_a_partly_locked_tower_trains_its_last_block_under_any_engine(fit: Fit, reference: Trained) -> None:
    lock = ["model.image.lock=true", "model.image.unlock_last=1", f"model.image.init={reference.folder}", "seed=1"]
    alone = fit(1, *lock)
    initial = reference.weights()
    changed = {name for name, tensor in alone.weights().items() if not np.array_equal(tensor, initial[name])}
    tower = {name for name in initial if name.startswith("image_tower.")}
    assert changed & tower == {name for name in tower if name.startswith(("image_tower.blocks.1.", "image_tower.norm."))}
    for world, engine in ((2, "zero3"), (2, "zero1")):
        run = fit(world, *lock, *ENGINES[engine])
        assert_same_training(run, alone)
        assert_same_weights(run, alone)


@pytest.mark.parametrize(("world", "engine"), [(1, "torch"), pytest.param(2, "zero2", marks=pytest.mark.slow)])
def test_logit_scale_stays_within_its_bounds(fit: Fit, world: int, engine: str) -> None:
    """Pressed against the floor by a learning rate that is too high, and against a low ceiling by a model that learns."""
    constant = ["optimizer.schedule=constant", *ENGINES[engine]]
    low = fit(world, "model.logit_scale_init=1.02", "optimizer.lr=0.03", "train.steps=8", *constant).column("logit_scale")
    assert low.min() == low[-1] == 0
    bounds = ["model.logit_scale_init=1.01", "model.logit_scale_max=1.02", "optimizer.lr=3e-3", "train.steps=32"]
    run = fit(world, *bounds, *constant)
    high = run.column("logit_scale")
    assert high.min() >= 0
    assert high.max() == high[-1] == run.weights()["logit_scale"].item() == pytest.approx(math.log(1.02), abs=1e-8)


@pytest.mark.parametrize(
    ("world", "workers"), [(2, 2), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((1, 3), (3, 2)))]
)
def test_one_epoch_sees_each_sample_once(fit: Fit, reference: Trained, world: int, workers: int) -> None:
    """Eight steps of 12 from uneven shards, in the order of the reference (one rank, no worker process)."""
    run = fit(world, "train.steps=1 epochs", "train.save_every=0", f"data.workers={workers}")
    assert run.rows[-1]["epoch"] == 1
    assert run.samples == reference.samples[:8]
    seen = [name for step in run.samples for name in step["samples"]]
    shards = ((0, range(37)), (1, range(37, 48)), (2, range(48, 96)))
    expected = [f"train-{shard:04d}.tar/s{number:04d}" for shard, numbers in shards for number in numbers]
    assert sorted(seen) == expected
    assert seen != expected, "not shuffled"
