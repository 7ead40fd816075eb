"""Schedules against big_vision's golden rates and the frequencies that the weights promise."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexiclip.config import Config, OptimizerConfig, PatchConfig, from_dict, load, parse_duration
from flexiclip.errors import UserError
from flexiclip.schedules import Horizon, SeqhwSchedule, learning_rate, micro_batches

EXTRAS = np.load(Path(__file__).parent / "golden" / "extras.npz")
HORIZON = Horizon(steps=1000, batch=8, samples=400)


def patch(**keys: Any) -> PatchConfig:
    return from_dict(Config, {"patch": keys}).patch


def optimizer(**keys: Any) -> OptimizerConfig:
    return from_dict(Config, {"optimizer": keys}).optimizer


def schedule(config: PatchConfig, seed: int = 0) -> SeqhwSchedule:
    return SeqhwSchedule(config, seed, HORIZON, cost=lambda s: float(s * s))


@pytest.mark.parametrize(
    ("golden", "keys"),
    [
        ("cosine_1000_warm100", {"schedule": "cosine", "warmup": 100}),
        ("rsqrt_1000_warm100_cool200_ts200", {"schedule": "rsqrt", "warmup": 100, "cooldown": 200, "timescale": 200}),
    ],
)
def test_learning_rate_equals_big_vision(golden: str, keys: dict[str, Any]) -> None:
    for lr in (1.0, 3e-4):
        rate = learning_rate(optimizer(lr=lr, **keys), HORIZON)
        found = [rate(int(step)) for step in EXTRAS["cosine_steps"]]
        assert found == pytest.approx(lr * EXTRAS[golden], rel=1e-5, abs=1e-6 * lr)


def test_constant_with_warm_up_and_cool_down() -> None:
    rate = learning_rate(optimizer(lr=0.5, schedule="constant", warmup=10, cooldown=100), HORIZON)
    expected = {0: 0.0, 5: 0.25, 10: 0.5, 500: 0.5, 900: 0.5, 950: 0.25, 999: 0.005, 1000: 0.0, 1001: 0.0}
    assert {step: rate(step) for step in expected} == pytest.approx(expected)
    flat = learning_rate(optimizer(lr=0.5, schedule="constant", warmup=0), HORIZON)
    assert {flat(step) for step in range(1000)} == {0.5}


def test_durations_in_every_unit_give_the_same_rates() -> None:
    """100 steps of 8 samples are 10 % of the run, 2 epochs of 400, 800 samples."""
    lists = []
    for warmup in (100, "10%", "2 epochs", "800 samples"):
        rate = learning_rate(optimizer(warmup=warmup, schedule="rsqrt", cooldown=warmup, timescale=warmup), HORIZON)
        lists.append([rate(step) for step in range(1001)])
    assert lists[0] == lists[1] == lists[2] == lists[3]
    assert max(lists[0]) == lists[0][100] == 1e-3


def test_horizon() -> None:
    assert [Horizon.of(parse_duration(d), 8, 401).steps for d in (7, "2 epochs", "17 samples")] == [7, 101, 3]
    with pytest.raises(UserError, match="the size of an epoch is unknown"):
        Horizon.of(parse_duration("1 epoch"), 8, None)
    with pytest.raises(UserError, match="cannot be a percentage"):
        Horizon.of(parse_duration("5%"), 8, 400)
    assert Horizon(50, 8, None).steps_of(parse_duration("5%")) == 3  # 2.5 steps, rounded up


def test_seqhw_is_a_pure_function_of_seed_and_step() -> None:
    config = patch(seqhw=[5, 6, 8, 10])
    steps = list(range(200))
    forward = [schedule(config, seed=3)(step) for step in steps]
    resumed = schedule(config, seed=3)
    assert [resumed(step) for step in reversed(steps)] == forward[::-1]
    assert [resumed(step) for step in steps] == forward
    other_seed = [schedule(config, seed=4)(step) for step in steps]
    for one, other in ((forward, other_seed), (forward[1:], other_seed[:-1])):  # nor is one the other a step later
        assert sum(a != b for a, b in zip(one, other, strict=True)) > 100
    code = (
        "from flexiclip.config import PatchConfig; from flexiclip.schedules import Horizon, SeqhwSchedule;"
        "s = SeqhwSchedule(PatchConfig(seqhw=(5, 6, 8, 10)), 3, Horizon(1000, 8, 400), lambda s: 1.0);"
        "print(*map(s, range(200)))"
    )
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert list(map(int, elsewhere.stdout.split())) == forward, "and of nothing that a process brings along"


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ("uniform", {2: 1 / 4, 3: 1 / 4, 4: 1 / 4, 6: 1 / 4}),
        ([1, 0, 2, 5], {2: 1 / 8, 4: 2 / 8, 6: 5 / 8}),
        ("inverse_cost", {2: 36 / 65, 3: 16 / 65, 4: 9 / 65, 6: 4 / 65}),  # 1/4 : 1/9 : 1/16 : 1/36
    ],
    ids=["uniform", "list", "inverse_cost"],
)
def test_frequencies(weights: Any, shares: dict[int, float]) -> None:
    """Pearson's chi-square of 6,000 draws stays below its 99.9 % quantile at 3 degrees of freedom, 16.3."""
    draws, seqhw = 6000, schedule(patch(seqhw=[2, 3, 4, 6], weights=weights), seed=1)
    counts = Counter(map(seqhw, range(draws)))
    assert counts.keys() == shares.keys()
    assert sum((counts[s] - draws * p) ** 2 / (draws * p) for s, p in shares.items()) < 16.3
    assert seqhw.expected(0, lambda s: s * s) == pytest.approx(sum(p * s * s for s, p in shares.items()))
    neighbours = Counter((seqhw(step), seqhw(step + 1)) for step in range(0, draws, 2))
    for (a, b), count in neighbours.items():  # consecutive seeds must not give related draws: 5 sigma of a binomial
        mean = draws / 2 * shares[a] * shares[b]
        assert abs(count - mean) < 5 * mean**0.5, (a, b)


@pytest.mark.parametrize("scale", [1e38, 1e-310])
def test_weights_of_any_size_give_the_same_shares(scale: float) -> None:
    weights = [w * (scale / 3) for w in (1, 0, 2, 4)]
    made, plain = (schedule(patch(seqhw=[2, 3, 4, 6], weights=w)) for w in (weights, [1, 0, 2, 4]))
    assert made.shares() == pytest.approx(plain.shares(), rel=1e-9)
    assert [made(step) for step in range(50)] == [plain(step) for step in range(50)]


def test_stages_switch_at_their_step_in_any_order() -> None:
    stages = [
        {"start": "50%", "seqhw": [10, 12], "weights": [1, 0]},
        {"start": 100, "seqhw": [6]},
        {"start": "3 epochs", "seqhw": [8]},  # step 150
    ]
    seqhw = schedule(patch(seqhw=[5], stages=stages))
    assert [seqhw(s) for s in (0, 99, 100, 149, 150, 499, 500, 999)] == [5, 5, 6, 6, 8, 8, 10, 10]
    assert seqhw.expected(499, float) == 8.0
    from_the_start = schedule(patch(seqhw=[5], stages=[{"start": 0, "seqhw": [6]}]))
    assert from_the_start(0) == 6


def test_what_no_schedule_can_be_made_of_is_refused() -> None:
    with pytest.raises(UserError, match=r"optimizer\.timescale=0 must be positive"):
        optimizer(timescale=0)
    with pytest.raises(UserError, match="seed=-1 must be 0 or more"):  # numpy takes no other
        from_dict(Config, {"seed": -1})
    with pytest.raises(UserError, match=r"seed=18446744073709551616 must be 0 or more and below 2\^64"):  # torch takes no other
        from_dict(Config, {"seed": 2**64})
    assert from_dict(Config, {"seed": 2**64 - 1}).seed == 2**64 - 1


def test_a_budget_of_tokens_sets_the_micro_batch_of_each_length() -> None:
    """An image costs seqhw^2 tokens, a caption its context length where the text tower trains; a rank has at most its share."""
    config = load("flexiclip_b", ["train.micro_tokens=125056"])
    sizes = micro_batches(config, world=64)
    assert [sizes(s) for s in (5, 15, 24, 30)] == [512, 414, 191, 128]
    assert micro_batches(config, world=256)(5) == 128
    locked = load("flexilit_text_b", ["train.micro_tokens=9000", "train.micro_batch_size=null", "train.global_batch_size=64"])
    assert locked.model.text_frozen
    assert [micro_batches(locked, world=2)(s) for s in (5, 20, 30)] == [32, 22, 10]
    assert micro_batches(load("flexiclip_b", ["train.micro_tokens=100"]), world=64)(30) == 1
    fixed = load("flexiclip_b", ["train.micro_tokens=null", "train.micro_batch_size=7"])
    assert {micro_batches(fixed, world=64)(s) for s in (5, 30)} == {7}


def test_horizon_of_keeps_what_durations_count_in_and_micro_batches_are_whole() -> None:
    assert Horizon.of(parse_duration("2 epochs"), 8, 401) == Horizon(101, 8, 401)
    recipe = load("flexiclip_b", ["train.micro_tokens=1000000", "train.micro_batch_size=null"])
    assert repr(micro_batches(recipe, world=32)(5)) == str(recipe.train.global_batch_size // 32), "an int, not a float"


def test_cosine_after_the_last_step_and_with_one_step_of_decay() -> None:
    rate = learning_rate(optimizer(lr=0.5, schedule="cosine", warmup=999), HORIZON)
    assert [rate(step) for step in (999, 1000, 1001, 1500)] == pytest.approx([0.5, 0.0, 0.0, 0.0])
