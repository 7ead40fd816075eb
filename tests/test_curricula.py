"""Curricula of sequence lengths against brute force, and runs as long as their FLOPs allow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flexiclip.config import Config, PatchConfig, from_dict
from flexiclip.errors import UserError
from flexiclip.schedules import Horizon, SeqhwSchedule, _edges, horizon_of

LENGTHS = [3, 4, 6, 10]
STEPS = 1000


def square(seqhw: int) -> float:
    return float(seqhw * seqhw)


def schedule(steps: int = STEPS, seed: int = 0, **keys: Any) -> SeqhwSchedule:
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
    found = probabilities(schedule(curriculum=curriculum, weights=weights, spread=spread), step)
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
    plain, moving = schedule(weights=weights), schedule(200, curriculum=curriculum, weights=weights, spread=spread)
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
    made = schedule(curriculum="short_to_long")
    assert probabilities(made, 0) == pytest.approx({3: 0.5, 4: 0.5, 6: 0.0005}, abs=1e-3)
    assert probabilities(made, STEPS // 2) == pytest.approx(dict.fromkeys(LENGTHS, 0.25), abs=1e-3)
    assert probabilities(made, STEPS - 1) == pytest.approx({4: 0.0005, 6: 0.5, 10: 0.5}, abs=1e-3)
    unsorted = schedule(curriculum="short_to_long", seqhw=[10, 3, 6, 4])
    assert probabilities(unsorted, 77) == pytest.approx(probabilities(made, 77))


def test_clipa_is_short_with_a_long_finish() -> None:
    made = schedule(curriculum="clipa", finish="10%", weights=[1, 3, 2, 2])
    assert probabilities(made, 0) == probabilities(made, 899) == {3: 0.25, 4: 0.75}
    assert probabilities(made, 900) == probabilities(made, 999) == {6: 0.5, 10: 0.5}
    assert made.shares() == pytest.approx({3: 0.225, 4: 0.675, 6: 0.05, 10: 0.05})
    odd = schedule(curriculum="clipa", seqhw=[3, 4, 6])
    assert [odd.shares()[s] for s in (3, 4, 6)] == pytest.approx([0.475, 0.475, 0.05]), "the middle one is among the short"
    counts = Counter(made(step) for step in range(STEPS))
    assert counts[3] + counts[4] == 900


@pytest.mark.parametrize("curriculum", ["short_to_long", "long_to_short", "clipa"])
def test_drawn_from_seed_and_step_alone(curriculum: str) -> None:
    made = schedule(curriculum=curriculum, seed=3)
    forward = [made(step) for step in range(STEPS)]
    resumed = schedule(curriculum=curriculum, seed=3)
    assert [resumed(step) for step in range(700, STEPS)] == forward[700:]
    assert [schedule(curriculum=curriculum, seed=4)(step) for step in range(STEPS)] != forward
    counts = Counter(forward)
    for seqhw, share in made.shares().items():  # 5 sigma, of draws that are at least as even as those of one distribution
        assert abs(counts[seqhw] - share * STEPS) < 5 * (STEPS * share * (1 - share)) ** 0.5


def test_shares_of_stages() -> None:
    stages = [{"start": "75%", "seqhw": [6]}, {"start": 900, "seqhw": [10, 3], "weights": [1, 0]}, {"start": 5000, "seqhw": [4]}]
    made = schedule(seqhw=[3, 4], weights=[1, 3], stages=stages)
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
    steps = horizon_of(config, 400, square, lambda s: 1e4 * s * s).steps

    def spent(length: int) -> float:
        made = SeqhwSchedule(config.patch, 0, Horizon(length, 8, 400), square)
        return sum(8e4 * made.expected(step, square) for step in range(length))

    assert spent(steps) <= 0.5e9 * (1 + 1e-9)
    assert spent(steps + 1) > 0.5e9


def test_cheaper_schedules_run_longer_on_the_same_flops() -> None:
    found = {
        name: horizon_of(recipe(**patch), 400, square, lambda s: 1e4 * s * s).steps
        for name, patch in {"even": {}, "inverse": {"weights": "inverse_cost"}, "clipa": {"curriculum": "clipa"}}.items()
    }
    assert found["even"] == 6250 * 4 // sum(s * s for s in LENGTHS)
    assert found["even"] < found["inverse"] < found["clipa"]


def test_a_budget_below_one_step() -> None:
    with pytest.raises(UserError, match=r"train\.steps=0\.0005 TFLOPs is less than one step takes"):
        horizon_of(recipe(), 400, square, lambda s: 1e9 * s * s)


@pytest.mark.parametrize(("steps", "expected"), [("1 TFLOPs", 1), ("3 TFLOPs", 3), ("49.5 TFLOPs", 49), ("75 TFLOPs", 54)])
def test_horizon_of_a_budget_by_hand(steps: str, expected: int) -> None:
    """A step of 8 pairs takes seqhw^2 / 16 TFLOPs: one in the first epoch of 50 steps, 6.25 from then on."""
    patch = {"seqhw": [4], "stages": [{"start": "1 epoch", "seqhw": [10]}]}
    config = from_dict(Config, {"patch": patch, "train": {"steps": steps, "global_batch_size": 8}})
    assert horizon_of(config, 400, square, lambda s: 1e12 * s * s / 16 / 8) == Horizon(expected, 8, 400)


def test_horizon_of_steps_epochs_and_samples_asks_for_no_flops() -> None:
    def never(seqhw: int) -> float:
        raise AssertionError("FLOPs are not needed")

    for steps, expected in ((7, 7), ("2 epochs", 101), ("17 samples", 3)):
        config = from_dict(Config, {"train": {"steps": steps, "global_batch_size": 8}})
        assert horizon_of(config, 401, square, never) == Horizon(expected, 8, 401)


def test_clipa_weighs_by_cost_and_may_finish_from_the_first_step() -> None:
    made = schedule(curriculum="clipa", weights="inverse_cost", finish=STEPS)
    expected = pytest.approx({6: 100 / 136, 10: 36 / 136})  # 1/36 : 1/100
    assert probabilities(made, 0) == probabilities(made, STEPS - 1) == expected
    assert made.shares() == expected


@pytest.mark.parametrize("curriculum", ["none", "short_to_long", "long_to_short"])
def test_shares_of_a_length_that_is_named_twice_add_up(curriculum: str) -> None:
    made = schedule(seqhw=[3, 4, 4, 6], curriculum=curriculum)
    assert made.shares() == pytest.approx({3: 0.25, 4: 0.5, 6: 0.25})


def test_edges_end_exactly_at_one() -> None:
    assert np.cumsum(np.full(6, 1 / 6))[-1] < 1, "rounding, which a window that ends at 1 would fall out of"
    assert _edges(np.full(6, 1 / 6))[[0, -1]].tolist() == [0.0, 1.0]


def test_clipa_halves_only_the_lengths_that_are_drawn() -> None:
    made = schedule(curriculum="clipa", weights=[5.0, 0.0, 1.0, 2.0], finish="10%")
    assert probabilities(made, 0) == pytest.approx({3: 5 / 6, 6: 1 / 6})
    assert probabilities(made, STEPS - 1) == {10: 1.0}
