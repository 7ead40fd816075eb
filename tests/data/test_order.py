"""The order of training: complete, uneven-proof, pure."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexiclip.config import Config, from_dict
from flexiclip.data.order import Plan, Source
from flexiclip.errors import UserError

COUNTS = st.lists(st.integers(0, 12), min_size=1, max_size=7).filter(any)


def plan_of(*sources: tuple[list[int], float], seed: int = 0, window: int = 2) -> Plan:
    return Plan([Source(np.array(counts), weight) for counts, weight in sources], seed, window)


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.integers(0, 2**63), st.integers(1, 9), st.integers(0, 5))
def test_each_epoch_holds_each_sample_once(counts: list[int], seed: int, window: int, epoch: int) -> None:
    plan = plan_of((counts, 1.0), seed=seed, window=window)
    n = sum(counts)
    places = [plan[position] for position in range(epoch * n, (epoch + 1) * n)]
    assert {(p.shard, p.sample) for p in places} == {(s, i) for s, count in enumerate(counts) for i in range(count)}
    assert {p.epoch for p in places} == {epoch}
    assert plan.samples == n


@settings(max_examples=40, deadline=None)
@given(COUNTS, COUNTS, st.integers(-5, 2**40), st.lists(st.integers(0, 10**9), min_size=2, max_size=20))
def test_a_position_is_pure(first: list[int], second: list[int], seed: int, positions: list[int]) -> None:
    sources = ((first, 2.0), (second, 1.0))
    plan = plan_of(*sources, seed=seed)
    forward = [plan[p] for p in positions]
    assert [plan_of(*sources, seed=seed)[p] for p in reversed(positions)] == forward[::-1]


def test_only_the_window_is_open() -> None:
    plan = plan_of(([10] * 12, 1.0), window=3)
    for window in range(4):
        places = [plan[position] for position in range(window * 30, window * 30 + 30)]
        assert {p.shard for p in places} == set(plan.window(places[0]))
        assert len(plan.window(places[0])) == 3


def test_seeds_and_epochs_differ() -> None:
    def order(seed: int, epoch: int) -> list[tuple[int, int]]:
        plan = plan_of(([20, 20, 20, 20], 1.0), seed=seed)
        return [(plan[p].shard, plan[p].sample) for p in range(80 * epoch, 80 * epoch + 80)]

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


def ranked(count: int, *key: int) -> list[int]:
    """0..count-1 by the size of PCG64's words."""
    words = np.random.PCG64(np.random.SeedSequence(key)).random_raw(count).tolist()
    return sorted(range(count), key=words.__getitem__)


def epoch_of(counts: list[int], seed: int, source: int, epoch: int, window: int) -> list[tuple[int, ...]]:
    """(epoch, source, window, shard, sample) of a source's epoch, written out: shards, windows of them, samples of those."""
    shards = ranked(len(counts), seed, 1, source, epoch)
    found = []
    for number in range(-(-len(counts) // window)):
        samples = [(shard, n) for shard in shards[window * number : window * number + window] for n in range(counts[shard])]
        order = ranked(len(samples), seed, 2, source, epoch, number)
        found += [(epoch, source, number, *samples[i]) for i in order]
    return found


@settings(max_examples=30, deadline=None)
@given(st.lists(COUNTS, min_size=1, max_size=3), st.integers(0, 2**64 - 1), st.integers(1, 4))
def test_the_order_is_the_one_written_out_by_hand(counts: list[list[int]], seed: int, window: int) -> None:
    """Blocks, sources with epochs of their own, shards, windows and samples, each from a stream of its own."""
    plan = plan_of(*((each, 1.0) for each in counts), seed=seed, window=window)
    epochs = range(1 + 60 // min(map(sum, counts)))
    own = [iter([place for e in epochs for place in epoch_of(c, seed, s, e, window)]) for s, c in enumerate(counts)]
    owners = np.repeat(range(len(counts)), plan.quotas)
    sources = owners[ranked(len(owners), seed, 3, 0)].tolist() if len(counts) > 1 else [0] * 60
    expected = [next(own[source]) for source in sources[:60]]
    places = [plan[position] for position in range(60)]
    assert [(p.epoch, p.source, p.window, p.shard, p.sample) for p in places] == expected


def test_no_two_orders_are_alike() -> None:
    """Of windows, of sources, of blocks, of epochs, all of the same size."""
    plan = plan_of(([20] * 4, 1.0), ([20] * 4, 1.0), window=2)
    places = [plan[position] for position in range(3 * sum(plan.quotas))]
    orders: dict[tuple[int, int, int], list[int]] = {}
    for p in places:
        slot = plan.window(p).index(p.shard)
        orders.setdefault((p.source, p.epoch, p.window), []).append(20 * slot + p.sample)
    complete = [order for order in orders.values() if len(order) == 40]
    assert len(complete) > 8
    assert all(a != b for i, a in enumerate(complete) for b in complete[:i])
    block = sum(plan.quotas)
    owners = [[p.source for p in places[start : start + block]] for start in (0, block, 2 * block)]
    assert all(a != b for i, a in enumerate(owners) for b in owners[:i])


@pytest.mark.parametrize(
    ("weights", "quotas"),
    [
        ((1e-8, 1e-8), (2048, 2048)),
        ((1e-7, 3e-7), (1024, 3072)),
        ((2e-7, 9e-7), (744, 3348)),  # 2/11 of 4092
        ((7e-7, 9e-7), (1792, 2304)),
        ((5e-324, 1e-323), (1365, 2730)),
        ((1e308, 1e308), (2048, 2048)),
        ((3e-9, 2e-9, 1e-9), (2046, 1364, 682)),
        ((1e-7, 4e-4), (1, 4000)),
    ],
)
def test_only_the_ratio_of_weights_counts(weights: tuple[float, ...], quotas: tuple[int, ...]) -> None:
    assert plan_of(*(([5], weight) for weight in weights)).quotas == quotas


@pytest.mark.parametrize("scale", [1e-12, 1e-7, 1e-4, 1e5])
def test_weights_of_any_size_give_the_same_quotas(scale: float) -> None:
    for weights in ((3, 1), (1, 2, 5), (7, 2, 1), (5, 17)):
        assert plan_of(*(([5], w * scale) for w in weights)).quotas == plan_of(*(([5], w) for w in weights)).quotas


@pytest.mark.parametrize("weight", [float("inf"), float("nan"), float("-inf"), 0.0, -1.0])
def test_a_weight_that_is_no_share_is_refused(weight: float) -> None:
    with pytest.raises(UserError, match=rf"data\.train\.weight(=|: ){weight} "):
        from_dict(Config, {"data": {"train": [{"shards": "a.tar", "weight": weight}]}})


@pytest.mark.parametrize(
    ("weights", "shares"), [((3.0, 1.0), (0.75, 0.25)), ((1, 2, 5), (1 / 8, 2 / 8, 5 / 8)), ((0.7, 0.2, 0.1), (0.7, 0.2, 0.1))]
)
def test_a_mixture_keeps_its_proportions_exactly(weights: tuple[float, ...], shares: tuple[float, ...]) -> None:
    plan = plan_of(*(([30, 7], weight) for weight in weights))
    block = sum(plan.quotas)
    for start in (0, 3 * block):
        seen = Counter(plan[position].source for position in range(start, start + block))
        assert [seen[s] / block for s in range(len(weights))] == pytest.approx(shares, abs=1e-12)


def test_a_mixture_keeps_awkward_proportions_to_a_slot() -> None:
    plan = plan_of(*(([5], weight) for weight in (np.pi, np.e, 2**0.5)))
    expected = np.array([np.pi, np.e, 2**0.5]) / (np.pi + np.e + 2**0.5)
    assert np.abs(np.array(plan.quotas) / sum(plan.quotas) - expected).max() < 1 / 4096


def test_a_source_of_a_mixture_has_epochs_of_its_own() -> None:
    plan = plan_of(([3, 4], 3.0), ([50], 1.0))
    small = [p for p in (plan[position] for position in range(400)) if p.source == 0]
    for epoch in range(len(small) // 7):
        part = small[7 * epoch : 7 * epoch + 7]
        assert {(p.shard, p.sample) for p in part} == {(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3)}
        assert {p.epoch for p in part} == {epoch}


def test_plan_of_ten_million_samples() -> None:
    plan = plan_of(([1000] * 10_000, 1.0), window=16)
    assert plan.samples == 10**7
    window = {(plan[p].shard, plan[p].sample) for p in range(16_000)}
    assert len(window) == 16_000
    assert len({shard for shard, _ in window}) == 16


def test_sources_that_cannot_be_planned() -> None:
    with pytest.raises(UserError, match="source 1 of 2 holds no samples"):
        plan_of(([3], 1.0), ([0, 0], 1.0))
    for small, large in ((1e-5, 1.0), (1e-9, 1e-4), (1.0, 1e300)):
        with pytest.raises(UserError, match=rf"weight {small:g} is below 1/4096 of all weights"):
            plan_of(([3], large), ([3], small))
