"""Schedules against big_vision's golden rates and the frequencies that the weights promise.

Curricula of sequence lengths are compared with brute force, and runs are as long as their FLOPs allow.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexiclip.config import Config, OptimizerConfig, PatchConfig, from_dict, load, parse_duration
from flexiclip.errors import UserError
from flexiclip.schedules import (
    Horizon,
    RunSchedule,
    SeqhwSchedule,
    _edges,
    horizon_of,
    keeps_text_features,
    learning_rate,
    micro_batches,
    pair_tokens,
)

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


def test_horizon_of_every_unit() -> None:
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
def test_lengths_are_drawn_as_often_as_their_weights_say(weights: Any, shares: dict[int, float]) -> None:
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


def micro_batches_of(config: Config, world: int) -> Callable[[int], int]:
    return micro_batches(config.train, pair_tokens(config.model, config.tokenizer), world)


def test_a_budget_of_tokens_sets_the_micro_batch_of_each_length() -> None:
    """An image costs seqhw^2 tokens, a caption its context length where the text tower trains; a rank has at most its share."""
    config = load("flexiclip_b", ["train.micro_tokens=125056"])
    sizes = micro_batches_of(config, world=64)
    assert [sizes(s) for s in (5, 15, 24, 30)] == [512, 414, 191, 128]
    assert micro_batches_of(config, world=256)(5) == 128
    locked = load("flexilit_text_b", ["train.micro_tokens=9000", "train.micro_batch_size=null", "train.global_batch_size=64"])
    assert locked.model.text_frozen
    assert [micro_batches_of(locked, world=2)(s) for s in (5, 20, 30)] == [32, 22, 10]
    assert micro_batches_of(load("flexiclip_b", ["train.micro_tokens=100"]), world=64)(30) == 1
    fixed = load("flexiclip_b", ["train.micro_tokens=null", "train.micro_batch_size=7"])
    assert {micro_batches_of(fixed, world=64)(s) for s in (5, 30)} == {7}


def test_text_features_are_kept_up_to_two_gibibytes() -> None:
    """Of a frozen text tower whose captions can be read before the run; 2^20 captions of 512 float32 numbers are 2 GiB."""
    locked, plain = load("flexilit_text_b"), load("flexiclip_b")
    assert keeps_text_features(locked.model, locked.data, 1 << 20, 512)
    assert not keeps_text_features(locked.model, locked.data, (1 << 20) + 1, 512)
    assert not keeps_text_features(locked.model, locked.data, 1 << 20, 513)
    assert keeps_text_features(locked.model, locked.data, None, 1 << 20)
    assert not keeps_text_features(plain.model, plain.data, 1, 512)
    assert not keeps_text_features(locked.model, replace(locked.data, sequential=True), 1, 512)


def test_a_run_schedule_is_made_of_its_recipe() -> None:
    config = from_dict(Config, {"seed": 7, "patch": {"seqhw": LENGTHS}, "train": {"steps": 60, "global_batch_size": 8}})
    made = RunSchedule.of(config, 400, square, square)
    assert made.horizon == Horizon(60, 8, 400)
    lengths, rate = SeqhwSchedule(config.patch, 7, made.horizon, square), learning_rate(config.optimizer, made.horizon)
    assert [made.seqhw(step) for step in range(60)] == [lengths(step) for step in range(60)]
    assert [made.lr(step) for step in range(60)] == [rate(step) for step in range(60)]


def test_horizon_of_keeps_what_durations_count_in_and_micro_batches_are_whole() -> None:
    assert Horizon.of(parse_duration("2 epochs"), 8, 401) == Horizon(101, 8, 401)
    recipe = load("flexiclip_b", ["train.micro_tokens=1000000", "train.micro_batch_size=null"])
    assert repr(micro_batches_of(recipe, world=32)(5)) == str(recipe.train.global_batch_size // 32), "an int, not a float"


def test_cosine_after_the_last_step_and_with_one_step_of_decay() -> None:
    rate = learning_rate(optimizer(lr=0.5, schedule="cosine", warmup=999), HORIZON)
    assert [rate(step) for step in (999, 1000, 1001, 1500)] == pytest.approx([0.5, 0.0, 0.0, 0.0])


LENGTHS = [3, 4, 6, 10]
STEPS = 1000


def square(seqhw: int) -> float:
    return float(seqhw * seqhw)


def curriculum_of(steps: int = STEPS, seed: int = 0, **keys: Any) -> SeqhwSchedule:
    config: PatchConfig = from_dict(Config, {"patch": {"seqhw": LENGTHS, **keys}}).patch
    return SeqhwSchedule(config, seed, Horizon(steps, 8, 400), square)


def is_(seqhw: int) -> Callable[[int], float]:
    return lambda drawn: float(drawn == seqhw)


def probabilities(made: SeqhwSchedule, step: int) -> dict[int, float]:
    return {s: p for s in LENGTHS if (p := made.expected(step, is_(s)))}


def thrown(progress: float, spread: float, weights: list[float], lengths: list[int]) -> dict[int, float]:
    """What a window gives, by throwing 20,000 points into it one by one and folding them back from both ends."""
    points = progress + spread * (np.random.default_rng(0).random(20_000) - 0.5)
    folded = np.abs((points + 1) % 2 - 1)  # a triangle wave: period 2, itself between 0 and 1
    ends = np.cumsum(weights) / np.sum(weights)
    counts = Counter(np.searchsorted(ends, folded, side="right").clip(max=len(lengths) - 1).tolist())
    return {lengths[i]: count / 20_000 for i, count in counts.items()}


@pytest.mark.parametrize("spread", [0.25, 1.0, 1.7])
@pytest.mark.parametrize("step", [0, 130, 499, 870, 999])
@pytest.mark.parametrize("curriculum", ["short_to_long", "long_to_short"])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0, 1.0], [5.0, 1.0, 0.0, 2.0]], ids=["uniform", "list"])
def test_what_lies_in_the_window_is_drawn(curriculum: str, weights: list[float], step: int, spread: float) -> None:
    found = probabilities(curriculum_of(curriculum=curriculum, weights=weights, spread=spread), step)
    turn = slice(None, None, -1 if curriculum == "long_to_short" else 1)
    expected = thrown((step + 0.5) / STEPS, spread, weights[turn], LENGTHS[turn])
    assert sum(found.values()) == pytest.approx(1)
    for seqhw in LENGTHS:
        assert found.get(seqhw, 0.0) == pytest.approx(expected.get(seqhw, 0.0), abs=0.018), seqhw  # 5 sigma of the throws


@pytest.mark.parametrize("spread", [0.1, 1.0, 2.0])
@pytest.mark.parametrize("weights", ["uniform", "inverse_cost", [0.0, 3.0, 1.0, 2.0]])
@pytest.mark.parametrize("curriculum", ["short_to_long", "long_to_short"])
def test_a_moving_window_changes_the_order_alone(curriculum: str, weights: Any, spread: float) -> None:
    """Over the whole run each length comes as often as without a curriculum, so the run costs the same."""
    plain, moving = curriculum_of(weights=weights), curriculum_of(200, curriculum=curriculum, weights=weights, spread=spread)
    assert moving.shares() == pytest.approx(plain.shares())
    assert moving.mean(square) == pytest.approx(plain.mean(square))
    for seqhw in LENGTHS:
        steps = [moving.expected(step, is_(seqhw)) for step in range(200)]
        assert np.mean(steps) == pytest.approx(plain.shares().get(seqhw, 0.0), abs=1e-4)
    means = [moving.expected(step, square) for step in (0, 199)]
    if spread < 2:
        assert (means[0] < means[1]) == (curriculum == "short_to_long")
    else:
        assert means == pytest.approx([plain.mean(square)] * 2)


def test_the_ends_of_a_window_as_wide_as_all_lengths() -> None:
    made = curriculum_of(curriculum="short_to_long")
    assert probabilities(made, 0) == pytest.approx({3: 0.5, 4: 0.5, 6: 0.0005}, abs=1e-3)
    assert probabilities(made, STEPS // 2) == pytest.approx(dict.fromkeys(LENGTHS, 0.25), abs=1e-3)
    assert probabilities(made, STEPS - 1) == pytest.approx({4: 0.0005, 6: 0.5, 10: 0.5}, abs=1e-3)
    unsorted = curriculum_of(curriculum="short_to_long", seqhw=[10, 3, 6, 4])
    assert probabilities(unsorted, 77) == pytest.approx(probabilities(made, 77))


def test_clipa_is_short_with_a_long_finish() -> None:
    made = curriculum_of(curriculum="clipa", finish="10%", weights=[1, 3, 2, 2])
    assert probabilities(made, 0) == probabilities(made, 899) == {3: 0.25, 4: 0.75}
    assert probabilities(made, 900) == probabilities(made, 999) == {6: 0.5, 10: 0.5}
    assert made.shares() == pytest.approx({3: 0.225, 4: 0.675, 6: 0.05, 10: 0.05})
    odd = curriculum_of(curriculum="clipa", seqhw=[3, 4, 6])
    assert [odd.shares()[s] for s in (3, 4, 6)] == pytest.approx([0.475, 0.475, 0.05]), "the middle one is among the short"
    counts = Counter(made(step) for step in range(STEPS))
    assert counts[3] + counts[4] == 900


@pytest.mark.parametrize("curriculum", ["short_to_long", "long_to_short", "clipa"])
def test_drawn_from_seed_and_step_alone(curriculum: str) -> None:
    made = curriculum_of(curriculum=curriculum, seed=3)
    forward = [made(step) for step in range(STEPS)]
    resumed = curriculum_of(curriculum=curriculum, seed=3)
    assert [resumed(step) for step in range(700, STEPS)] == forward[700:]
    assert [curriculum_of(curriculum=curriculum, seed=4)(step) for step in range(STEPS)] != forward
    counts = Counter(forward)
    for seqhw, share in made.shares().items():  # 5 sigma, of draws that are at least as even as those of one distribution
        assert abs(counts[seqhw] - share * STEPS) < 5 * (STEPS * share * (1 - share)) ** 0.5


def test_shares_of_stages_by_hand() -> None:
    stages = [{"start": "75%", "seqhw": [6]}, {"start": 900, "seqhw": [10, 3], "weights": [1, 0]}, {"start": 5000, "seqhw": [4]}]
    made = curriculum_of(seqhw=[3, 4], weights=[1, 3], stages=stages)
    assert made.shares() == pytest.approx({3: 0.1875, 4: 0.5625, 6: 0.15, 10: 0.1})
    drawn = np.mean([square(made(step)) for step in range(STEPS)])
    assert made.mean(square) == pytest.approx(drawn, rel=0.05)


def recipe(**patch: Any) -> Config:
    return from_dict(Config, {"patch": {"seqhw": LENGTHS, **patch}, "train": {"steps": "0.5 GFLOPs", "global_batch_size": 8}})


@pytest.mark.parametrize(
    "patch",
    [{}, {"weights": "inverse_cost"}, {"curriculum": "clipa"}, {"stages": [{"start": 100, "seqhw": [10]}]}],
    ids=["uniform", "inverse_cost", "clipa", "stages"],
)
def test_a_run_as_long_as_its_flops(patch: dict[str, Any]) -> None:
    """0.5 GFLOPs at 10^4 x seqhw^2 a pair: the run keeps to them, one of a step more does not."""
    config = recipe(**patch)
    steps = horizon_of(config.train, config.patch, 400, square, lambda s: 1e4 * s * s).steps

    def spent(length: int) -> float:
        made = SeqhwSchedule(config.patch, 0, Horizon(length, 8, 400), square)
        return sum(8e4 * made.expected(step, square) for step in range(length))

    assert spent(steps) <= 0.5e9 * (1 + 1e-9)
    assert spent(steps + 1) > 0.5e9


def test_cheaper_schedules_run_longer_on_the_same_flops() -> None:
    found = {
        name: horizon_of(recipe().train, recipe(**patch).patch, 400, square, lambda s: 1e4 * s * s).steps
        for name, patch in {"even": {}, "inverse": {"weights": "inverse_cost"}, "clipa": {"curriculum": "clipa"}}.items()
    }
    assert found["even"] == 6250 * 4 // sum(s * s for s in LENGTHS)
    assert found["even"] < found["inverse"] < found["clipa"]


def test_a_budget_below_one_step() -> None:
    with pytest.raises(UserError, match=r"train\.steps=0\.0005 TFLOPs is less than one step takes"):
        horizon_of(recipe().train, recipe().patch, 400, square, lambda s: 1e9 * s * s)


@pytest.mark.parametrize(("steps", "expected"), [("1 TFLOPs", 1), ("3 TFLOPs", 3), ("49.5 TFLOPs", 49), ("75 TFLOPs", 54)])
def test_horizon_of_a_budget_by_hand(steps: str, expected: int) -> None:
    """A step of 8 pairs takes seqhw^2 / 16 TFLOPs: one in the first epoch of 50 steps, 6.25 from then on."""
    patch = {"seqhw": [4], "stages": [{"start": "1 epoch", "seqhw": [10]}]}
    config = from_dict(Config, {"patch": patch, "train": {"steps": steps, "global_batch_size": 8}})
    assert horizon_of(config.train, config.patch, 400, square, lambda s: 1e12 * s * s / 16 / 8) == Horizon(expected, 8, 400)


def test_horizon_of_steps_epochs_and_samples_asks_for_no_flops() -> None:
    def never(seqhw: int) -> float:
        raise AssertionError("FLOPs are not needed")

    for steps, expected in ((7, 7), ("2 epochs", 101), ("17 samples", 3)):
        config = from_dict(Config, {"train": {"steps": steps, "global_batch_size": 8}})
        assert horizon_of(config.train, config.patch, 401, square, never) == Horizon(expected, 8, 401)


def test_clipa_weighs_by_cost_and_may_finish_from_the_first_step() -> None:
    made = curriculum_of(curriculum="clipa", weights="inverse_cost", finish=STEPS)
    expected = pytest.approx({6: 100 / 136, 10: 36 / 136})  # 1/36 : 1/100
    assert probabilities(made, 0) == probabilities(made, STEPS - 1) == expected
    assert made.shares() == expected


@pytest.mark.parametrize("curriculum", ["none", "short_to_long", "long_to_short"])
def test_shares_of_a_length_that_is_named_twice_add_up(curriculum: str) -> None:
    made = curriculum_of(seqhw=[3, 4, 4, 6], curriculum=curriculum)
    assert made.shares() == pytest.approx({3: 0.25, 4: 0.5, 6: 0.25})


def test_edges_end_exactly_at_one() -> None:
    assert np.cumsum(np.full(6, 1 / 6))[-1] < 1, "rounding, which a window that ends at 1 would fall out of"
    assert _edges(np.full(6, 1 / 6))[[0, -1]].tolist() == [0.0, 1.0]


def test_clipa_halves_only_the_lengths_that_are_drawn() -> None:
    made = curriculum_of(curriculum="clipa", weights=[5.0, 0.0, 1.0, 2.0], finish="10%")
    assert probabilities(made, 0) == pytest.approx({3: 5 / 6, 6: 1 / 6})
    assert probabilities(made, STEPS - 1) == {10: 1.0}
