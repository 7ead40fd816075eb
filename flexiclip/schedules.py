"""How long a run is: what turns durations into steps.

The learning rate: warm-up and cool-down around cosine, rsqrt or constant (big_vision's create_learning_rate_schedule).

How many samples a rank encodes at once at each sequence length.

The sequence length of each step: one seqhw, drawn from (seed, step) as in FlexiViT (arXiv 2212.08013, section 3.2).

Every rank knows it without being told, and a resumed run draws the same list. What is drawn from may change over the run, by the
stages or by the curriculum of the recipe's section `patch` (section 5.4 there; CLIPA, arXiv 2305.07017).

A run as long as its FLOPs allow: train.steps="30 TFLOPs".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from flexiclip.config import Config, Duration, OptimizerConfig, PatchConfig, to_steps
from flexiclip.draws import Stream
from flexiclip.errors import UserError


@dataclass(frozen=True)
class Horizon:
    """What turns a duration into steps: the run's steps, its global batch and the samples of an epoch (None: unknown)."""

    steps: int
    batch: int
    samples: int | None

    @classmethod
    def of(cls, length: Duration, batch: int, samples: int | None) -> Horizon:
        """The horizon of a run whose length is given in steps, epochs or samples."""
        return cls(to_steps(length, batch=batch, samples=samples), batch, samples)

    def steps_of(self, duration: Duration) -> int:
        """Steps of a duration within this run."""
        return to_steps(duration, batch=self.batch, samples=self.samples, total=self.steps)


def learning_rate(config: OptimizerConfig, horizon: Horizon) -> Callable[[int], float]:
    """step -> learning rate: linear warm-up from 0, the schedule, and a linear cool-down to 0 at the last step."""
    total, warmup, cooldown = horizon.steps, horizon.steps_of(config.warmup), horizon.steps_of(config.cooldown)
    decay = _DECAYS[config.schedule](total, warmup, horizon.steps_of(config.timescale))

    def rate(step: int) -> float:
        lr = config.lr * decay(step)
        if warmup:
            lr *= min(1.0, step / warmup)
        if cooldown:
            lr *= min(1.0, max(0, total - step) / cooldown)
        return lr

    return rate


def _cosine(total: int, warmup: int, timescale: int) -> Callable[[int], float]:
    def decay(step: int) -> float:
        progress = min(1.0, max(0.0, (step - warmup) / max(1, total - warmup)))
        return 0.5 * (1 + math.cos(math.pi * progress))

    return decay


def _rsqrt(total: int, warmup: int, timescale: int) -> Callable[[int], float]:
    return lambda step: (1 + max(0, step - warmup) / timescale) ** -0.5


def _constant(total: int, warmup: int, timescale: int) -> Callable[[int], float]:
    return lambda step: 1.0


_DECAYS = {"cosine": _cosine, "rsqrt": _rsqrt, "constant": _constant}


def pair_tokens(config: Config, seqhw: int) -> int:
    """Tokens of an image at grid side `seqhw`, and of its caption at full length where the text tower trains."""
    text = config.model.text
    return seqhw**2 + (0 if text is None or text.frozen else config.tokenizer.context_length)


def within_budget(config: Config, budget: int) -> Callable[[int], int]:
    """seqhw -> pairs that `budget` tokens hold, at least one."""
    return lambda seqhw: max(1, budget // pair_tokens(config, seqhw))


def micro_batches(config: Config, world: int) -> Callable[[int], int]:
    """seqhw -> samples that a rank encodes at once: a fixed number, what a budget of tokens holds, or its whole share."""
    train = config.train
    local = train.global_batch_size // world
    if train.micro_tokens is not None:
        held = within_budget(config, train.micro_tokens)
        return lambda seqhw: min(local, held(seqhw))
    return lambda _: train.micro_batch_size or local


Cost = Callable[[int], float]
"""seqhw -> what a step of that length costs, in any unit."""


class _Law(Protocol):
    """What the lengths are drawn from, step by step."""

    def at(self, step: int) -> tuple[Sequence[int], np.ndarray]:
        """The lengths and their probabilities, which sum to 1."""
        ...

    def shares(self) -> dict[int, float]:
        """seqhw -> its share of the steps of the whole run, in expectation."""
        ...


class SeqhwSchedule:
    """step -> seqhw. `cost` gives the relative cost of a length, for weights that are `inverse_cost`."""

    def __init__(self, config: PatchConfig, seed: int, horizon: Horizon, cost: Cost) -> None:
        self.seed = seed
        self._law = _LAWS[config.curriculum](config, horizon, cost)

    def __call__(self, step: int) -> int:
        """The grid side that step `step` (from 0) trains."""
        seqhw, probabilities = self._law.at(step)
        return int(seqhw[Stream(self.seed, step).choice(probabilities)])

    def expected(self, step: int, value: Callable[[int], float]) -> float:
        """The mean of `value(seqhw)` over the lengths that may be drawn at `step`."""
        return float(sum(p * value(s) for s, p in zip(*self._law.at(step), strict=True)))

    def shares(self) -> dict[int, float]:
        """seqhw -> its share of the steps of the whole run, in expectation; lengths that are never drawn are left out."""
        return {seqhw: share for seqhw, share in sorted(self._law.shares().items()) if share > 0}

    def mean(self, value: Callable[[int], float]) -> float:
        """The mean of `value(seqhw)` over the steps of the whole run, in expectation."""
        return float(sum(share * value(seqhw) for seqhw, share in self.shares().items()))


@dataclass(frozen=True)
class _Stage:
    start: int  # step
    seqhw: tuple[int, ...]
    probabilities: np.ndarray


@dataclass(frozen=True)
class _Stages:
    """One distribution after the other."""

    stages: list[_Stage]  # by their start; the first one's is 0
    steps: int

    def at(self, step: int) -> tuple[Sequence[int], np.ndarray]:
        """See _Law."""
        stage = [stage for stage in self.stages if stage.start <= step][-1]
        return stage.seqhw, stage.probabilities

    def shares(self) -> dict[int, float]:
        """See _Law."""
        starts = [min(stage.start, self.steps) for stage in self.stages]
        found: dict[int, float] = {}
        for stage, start, end in zip(self.stages, starts, [*starts[1:], self.steps], strict=True):
            for seqhw, p in zip(stage.seqhw, stage.probabilities, strict=True):
                found[seqhw] = found.get(seqhw, 0.0) + float(p) * (end - start) / self.steps
        return found


@dataclass(frozen=True)
class _Window:
    """The lengths in order, and a window that moves over them: what lies in it is drawn.

    The lengths share the line from 0 to 1 by their weights. The window is `spread` wide and its middle goes from 0 to 1; where it
    reaches beyond an end it is folded back. So every point of the line is drawn equally often over the whole run, each length as
    often as its weight says, and the run costs what it would without a curriculum: only the order is another one.
    """

    seqhw: tuple[int, ...]
    edges: np.ndarray  # [n + 1], from 0 to 1
    spread: float
    steps: int

    def at(self, step: int) -> tuple[Sequence[int], np.ndarray]:
        """See _Law."""
        middle = (step + 0.5) / self.steps
        low, high = middle - self.spread / 2, middle + self.spread / 2
        covered = _overlap(low, high, -self.edges, self.edges) + _overlap(low, high, 2 - self.edges, 2 + self.edges)
        probabilities = np.diff(covered).clip(min=0)
        return self.seqhw, probabilities / probabilities.sum()

    def shares(self) -> dict[int, float]:
        """See _Law."""
        found: dict[int, float] = {}
        for seqhw, width in zip(self.seqhw, np.diff(self.edges), strict=True):
            found[seqhw] = found.get(seqhw, 0.0) + float(width)
        return found


def _overlap(low: float, high: float, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """How much of each interval from `starts` to `ends` lies between low and high."""
    return np.clip(np.minimum(high, ends) - np.maximum(low, starts), 0, None)


def _stages(config: PatchConfig, horizon: Horizon, cost: Cost) -> _Law:
    stages = [(0, config.seqhw, config.weights)]
    stages += [(horizon.steps_of(stage.start), stage.seqhw, stage.weights) for stage in config.stages]
    found = [_Stage(start, seqhw, _probabilities(seqhw, weights, cost)) for start, seqhw, weights in stages]
    return _Stages(sorted(found, key=lambda stage: stage.start), horizon.steps)


def _clipa(config: PatchConfig, horizon: Horizon, cost: Cost) -> _Law:
    """The shorter half of the lengths, the middle one included, and for the last `finish` the longer half."""
    seqhw, probabilities = _in_order(config, cost)
    half = (len(seqhw) + 1) // 2
    finish = max(0, horizon.steps - horizon.steps_of(config.finish))
    parts = [(0, slice(0, half)), (finish, slice(half, None))]
    stages = [_Stage(start, seqhw[part], probabilities[part] / probabilities[part].sum()) for start, part in parts]
    return _Stages(stages, horizon.steps)


def _short_to_long(config: PatchConfig, horizon: Horizon, cost: Cost) -> _Law:
    seqhw, probabilities = _in_order(config, cost)
    return _Window(seqhw, _edges(probabilities), config.spread, horizon.steps)


def _long_to_short(config: PatchConfig, horizon: Horizon, cost: Cost) -> _Law:
    seqhw, probabilities = _in_order(config, cost)
    return _Window(seqhw[::-1], _edges(probabilities[::-1]), config.spread, horizon.steps)


_LAWS: dict[str, Callable[[PatchConfig, Horizon, Cost], _Law]] = {
    "none": _stages,
    "short_to_long": _short_to_long,
    "long_to_short": _long_to_short,
    "clipa": _clipa,
}


def _in_order(config: PatchConfig, cost: Cost) -> tuple[tuple[int, ...], np.ndarray]:
    """The lengths that have a weight, shortest first, and their probabilities."""
    drawn = [(s, p) for s, p in zip(config.seqhw, _probabilities(config.seqhw, config.weights, cost), strict=True) if p > 0]
    seqhw, probabilities = zip(*sorted(drawn), strict=True)
    return seqhw, np.array(probabilities)


def _edges(probabilities: np.ndarray) -> np.ndarray:
    """Where each length begins on the line from 0 to 1, and where the last one ends: exactly at 1."""
    edges = np.concatenate([[0.0], np.cumsum(probabilities)])
    return edges / edges[-1]


def _probabilities(seqhw: Sequence[int], weights: str | Sequence[float], cost: Cost) -> np.ndarray:
    if weights == "inverse_cost":
        raw = np.array([1 / cost(s) for s in seqhw])
    elif weights == "uniform":
        raw = np.ones(len(seqhw))
    else:
        raw = np.array(weights, dtype=np.float64)
    if math.isinf(sum(raw.tolist())):  # of finite numbers
        raw = raw / raw.max()
    return raw / raw.sum()


TERA = 10**12


def horizon_of(config: Config, samples: int | None, cost: Cost, pair_flops: Callable[[int], float]) -> Horizon:
    """The horizon of a recipe's run. samples: of an epoch, None where unknown.

    cost: relative, of a length, for weights that are `inverse_cost`. pair_flops: what training takes of a pair at a length,
    asked for only when train.steps is a number of FLOPs; the run is then the longest whose schedule is expected to keep to it.
    """
    length, batch = config.train.steps, config.train.global_batch_size
    if length.unit != "TFLOPs":
        return Horizon.of(length, batch, samples)
    flops = {seqhw: pair_flops(seqhw) for seqhw in config.patch.all_seqhw}

    def spent(steps: int) -> float:
        """TFLOPs that a run of so many steps is expected to take."""
        schedule = SeqhwSchedule(config.patch, config.seed, Horizon(steps, batch, samples), cost)
        return steps * batch * schedule.mean(flops.__getitem__) / TERA

    if spent(1) > length.value:
        raise UserError(f"train.steps={length} is less than one step takes, {spent(1):.3g} TFLOPs")
    low, high = 1, int(length.value * TERA / (batch * min(flops.values()))) + 1
    while high - low > 1:  # spent(low) keeps to it, spent(high) does not
        middle = (low + high) // 2
        low, high = (middle, high) if spent(middle) <= length.value else (low, middle)
    return Horizon(low, batch, samples)
