"""Every way to shard the training state with every combination of locks, and pairs of all else that says how a step is run.

A row trains 20 steps and saves at 10; its losses, weights and moments are those of plain torch on one rank with the same locks
and precision. From the checkpoint of every third row another engine goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from kit.alike import ENGINES, assert_same_training, assert_same_weights
from kit.launch import Trained
from safetensors.numpy import load_file

Fit = Callable[..., Trained]

SHARDED = {
    **ENGINES,
    **{f"zero{stage}-optimizer": [*ENGINES[f"zero{stage}"], "engine.offload=optimizer"] for stage in (1, 2, 3)},
    "zero3-parameters": [*ENGINES["zero3"], "engine.offload=parameters"],
}
LOCKED = {
    "open": (),
    "image": ("image",),
    "text": ("text",),
    "both": ("image", "text"),  # two projections train
    "image-last": ("image",),
    "text-last": ("text",),
    "both-last": ("image", "text"),
}
"""The towers that are locked; `-last` opens their last block again."""
PRECISIONS = ("fp32", "bf16")
ACTIVATIONS = {"kept": [], "recomputed": ["train.activation_checkpointing=true"]}
MICRO = {"whole": [], "size": ["train.micro_batch_size=2"], "tokens": ["train.micro_tokens=96"]}

Row = tuple[str, str, int, str, str, str]


def rows() -> list[Row]:
    """(engine, lock, ranks, precision, activations, micro-batches): every engine with every lock, the rest in turn."""
    found: list[Row] = []
    for (e, engine), (k, lock) in product(enumerate(SHARDED), enumerate(LOCKED)):
        precision, recomputed = PRECISIONS[(e // 2 + k) % 2], list(ACTIVATIONS)[(e // 4 + k // 2) % 2]
        turn = 1 + (e + k) % 3, precision, recomputed, list(MICRO)[(e + 2 * k) % 3]
        found.append((engine, lock, *turn))
    return found


DEFAULT = [("zero3-parameters", "both-last")]
EVERY = [pytest.param(*row, marks=[] if row[:2] in DEFAULT else [pytest.mark.slow]) for row in rows()]


def test_the_rows_hold_every_pair() -> None:
    choices = (list(SHARDED), list(LOCKED), [1, 2, 3], list(PRECISIONS), list(ACTIVATIONS), list(MICRO))
    for (i, one), (j, other) in combinations(enumerate(choices), 2):
        held = {(row[i], row[j]) for row in rows()}
        assert held == set(product(one, other)), (i, j, set(product(one, other)) - held)


@pytest.fixture(scope="module")
def plainly(fit: Fit, reference: Trained) -> Callable[[str, str], Trained]:
    """Plain torch on one rank, by lock and precision."""
    return cache(lambda lock, precision: fit(1, *recipe_of(lock, precision, reference)))


def recipe_of(lock: str, precision: str, weights: Trained) -> list[str]:
    """The overrides that a row shares with its reference. Locked towers come from `weights`, the others are new."""
    towers = [f"model.{half}.{key}" for half in LOCKED[lock] for key in ("lock=true", f"init={weights.folder}")]
    last = [f"model.{half}.unlock_last=1" for half in LOCKED[lock] if lock.endswith("-last")]
    rate = ["optimizer.lr=1e-4"] if precision == "bf16" else []  # a low rate keeps training from amplifying what bf16 rounds
    return [*towers, *last, *rate, "seed=1", f"train.precision={precision}", "train.save_every=10"]


@pytest.mark.parametrize(("engine", "lock", "world", "precision", "activations", "micro"), EVERY)
def test_every_engine_under_every_lock(
    fit: Fit,
    reference: Trained,
    plainly: Callable[[str, str], Trained],
    engine: str,
    lock: str,
    world: int,
    precision: str,
    activations: str,
    micro: str,
) -> None:
    alone = plainly(lock, precision)
    shared = recipe_of(lock, precision, reference)
    run = fit(world, *shared, *SHARDED[engine], *ACTIVATIONS[activations], *MICRO[micro])
    loss, norm, weight = (1e-4, 1e-4, 1e-5) if precision == "fp32" else (0.02, 0.1, 1e-3)
    assert_same_training(run, alone, loss=loss, norm=norm)
    assert_same_weights(run, alone, tolerance=weight)
    assert_same_moments(run, alone, tolerance=1e-4 if precision == "fp32" else 0.2)
    assert_frozen(run, reference, lock)

    number = list(SHARDED).index(engine)
    if (number + list(LOCKED).index(lock)) % 3 != 2:  # a third of the rows, with every engine on both sides
        return
    onward = list(SHARDED)[(number + 4) % len(SHARDED)]
    resumed = fit(1 + world % 3, *shared, *SHARDED[onward], f"train.resume={run.checkpoint(10)}")
    assert resumed.samples == alone.samples[10:]
    np.testing.assert_allclose(resumed.column("loss"), alone.column("loss")[10:], rtol=0, atol=loss)
    assert_frozen(resumed, reference, lock)


def assert_same_moments(run: Trained, alone: Trained, tolerance: float) -> None:
    """Of the same parameters, within a fraction of the largest of their tensor."""
    moments, expected = (load_file(each.checkpoint(20) / "optimizer.safetensors") for each in (run, alone))
    assert moments.keys() == expected.keys()
    for name, moment in expected.items():
        error, largest = np.abs(moments[name] - moment).max(), np.abs(moment).max()
        assert error <= tolerance * largest + 1e-9, (name, error, largest)


def assert_frozen(run: Trained, weights: Trained, lock: str) -> None:
    """What is locked is in the model folder, bit-equal to where it came from; what is not has moved and has moments."""
    initial, trained = weights.weights(), run.weights()
    assert trained.keys() == initial.keys()
    still = {name for name in initial if bool((trained[name] == initial[name]).all())}
    locked = {name for name in initial for half in LOCKED[lock] if name.startswith(f"{half}_tower.")}
    if lock.endswith("-last"):
        locked = {name for name in locked if ".blocks.1." not in name and "_tower.norm." not in name}
    assert still - {"logit_scale"} == locked
    moments: dict[str, Any] = load_file(run.checkpoint(20) / "optimizer.safetensors")
    own = {name.removeprefix("exp_avg/") for name in moments if name.startswith("exp_avg/")}
    assert own == initial.keys() - locked - {"logit_scale"}
