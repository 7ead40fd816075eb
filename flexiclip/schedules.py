"""The schedules of a run: its length, the learning rate, and each step's sequence length and micro-batch size.

`RunSchedule` has all that is known of a run's steps before the first one.

The sequence length of a step is one seqhw, drawn from (seed, step) as in FlexiViT (arXiv 2212.08013, section 3.2).
Every rank can compute it without communication, and a resumed run draws the same values. The distribution may change
over the run: by the stages of the recipe's section `patch`, or by its curriculum (section 5.4 of the paper; CLIPA,
arXiv 2305.07017).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import numpy as np

from flexiclip.config import Config, Duration, to_steps
from flexiclip.config.schema import DataConfig, ModelConfig, OptimizerConfig, PatchConfig, TokenizerConfig, TrainConfig
from flexiclip.draws import Stream
from flexiclip.errors import UserError


@dataclass(frozen=True)
class Horizon:
    """Turns durations into steps: the run's steps, its global batch size, and the samples of an epoch (None if unknown)."""

    steps: int
    batch: int
    samples: int | None

    @classmethod
    def of(cls, length: Duration, batch: int, samples: int | None) -> Horizon:
        """Return the horizon of a run whose length is given in steps, epochs or samples."""
        return cls(to_steps(length, batch=batch, samples=samples), batch, samples)

    def steps_of(self, duration: Duration) -> int:
        """Return the number of steps of a duration within this run."""
        return to_steps(duration, batch=self.batch, samples=self.samples, total=self.steps)


def learning_rate(config: OptimizerConfig, horizon: Horizon) -> Callable[[int], float]:
    """Return a function from step to learning rate.

    The rate warms up linearly from 0, follows the schedule (cosine, rsqrt or constant), and cools down linearly to 0 at
    the last step, as in big_vision's create_learning_rate_schedule.
    """
    total, warmup, cooldown = horizon.steps, horizon.steps_of(config.warmup), horizon.steps_of(config.cooldown)
    decay, timescale = _DECAYS[config.schedule], horizon.steps_of(config.timescale)

    def rate(step: int) -> float:
        lr = config.lr * decay(max(0, step - warmup), max(1, total - warmup), timescale)
        if warmup:
            lr *= min(1.0, step / warmup)
        if cooldown:
            lr *= min(1.0, max(0, total - step) / cooldown)
        return lr

    return rate


_DECAYS: dict[str, Callable[[int, int, int], float]] = {
    "cosine": lambda passed, steps, timescale: 0.5 * (1 + math.cos(math.pi * min(1.0, passed / steps))),
    "rsqrt": lambda passed, steps, timescale: (1 + passed / timescale) ** -0.5,
    "constant": lambda passed, steps, timescale: 1.0,
}
"""Functions of the steps that have passed since the warm-up, the number of all steps after it, and optimizer.timescale."""


def pair_tokens(model: ModelConfig, tokenizer: TokenizerConfig) -> Callable[[int], int]:
    """Return a function from seqhw to the tokens of a pair: its image, and a full caption if the text tower trains."""
    caption = 0 if model.text is None or model.text_frozen else tokenizer.context_length
    return lambda seqhw: seqhw**2 + caption


def within_budget(tokens: Callable[[int], int], budget: int) -> Callable[[int], int]:
    """Return a function from seqhw to the number of pairs that `budget` tokens hold, at least one. tokens: seqhw -> per pair."""
    return lambda seqhw: max(1, budget // tokens(seqhw))


def micro_batches(train: TrainConfig, tokens: Callable[[int], int], world: int) -> Callable[[int], int]:
    """Return a function from seqhw to the number of samples encoded at once per rank. tokens: seqhw -> tokens of a pair.

    This is a fixed number, the number that a budget of tokens holds, or all samples of the rank.
    """
    local = train.global_batch_size // world
    if train.micro_tokens is not None:
        held = within_budget(tokens, train.micro_tokens)
        return lambda seqhw: min(local, held(seqhw))
    return lambda _: train.micro_batch_size or local


KEPT_TEXT_FEATURES = 2 << 30
"""The most bytes of features of a frozen text tower that a run keeps. With more captions, the tower runs in every step."""


def keeps_text_features(model: ModelConfig, data: DataConfig, captions: int | None, width: int) -> bool:
    """Whether a run computes the features of its captions once, before the first step (train/text_features.py).

    It does if the text tower is frozen and the features, of `width` numbers each, are few enough to keep. `captions` is None if
    their number is unknown; then they are taken to be few.
    """
    few = 4 * width * (captions or 0) <= KEPT_TEXT_FEATURES
    return model.text_frozen and not data.sequential and few


Cost = Callable[[int], float]
"""Maps seqhw to the cost of a step with that length, in any unit."""


class _Law(Protocol):
    """The distribution of the lengths at each step."""

    def at(self, step: int) -> tuple[Sequence[int], np.ndarray]:
        """Return the lengths at a step and their probabilities, which sum to 1."""

    def shares(self) -> dict[int, float]:
        """Return each seqhw's expected share of the steps of the whole run."""


class SeqhwSchedule:
    """Maps a step to its seqhw. `cost` gives the relative cost of a length, for weights that are `inverse_cost`."""

    def __init__(self, config: PatchConfig, seed: int, horizon: Horizon, cost: Cost) -> None:
        self.seed = seed
        self._law = _LAWS[config.curriculum](config, horizon, cost)

    def __call__(self, step: int) -> int:
        """Return the grid side on which step `step` (from 0) trains."""
        seqhw, probabilities = self._law.at(step)
        return int(seqhw[Stream(self.seed, step).weighted_index(probabilities)])

    def expected(self, step: int, value: Callable[[int], float]) -> float:
        """Return the mean of `value(seqhw)` over the lengths that may be drawn at `step`."""
        return float(sum(p * value(s) for s, p in zip(*self._law.at(step), strict=True)))

    def shares(self) -> dict[int, float]:
        """Return each seqhw's expected share of the steps of the whole run, without lengths that are never drawn."""
        return {seqhw: share for seqhw, share in sorted(self._law.shares().items()) if share > 0}

    def mean(self, value: Callable[[int], float]) -> float:
        """Return the expected mean of `value(seqhw)` over the steps of the whole run."""
        return float(sum(share * value(seqhw) for seqhw, share in self.shares().items()))


@dataclass(frozen=True)
class _Stage:
    start: int  # step
    seqhw: tuple[int, ...]
    probabilities: np.ndarray


@dataclass(frozen=True)
class _Stages:
    """A law with one distribution after the other."""

    stages: list[_Stage]  # sorted by their start; the first starts at 0
    steps: int

    def at(self, step: int) -> tuple[Sequence[int], np.ndarray]:
        """Return the lengths and probabilities of the stage that contains the step."""
        stage = [stage for stage in self.stages if stage.start <= step][-1]
        return stage.seqhw, stage.probabilities

    def shares(self) -> dict[int, float]:
        """Return each seqhw's expected share, summed over the stages."""
        starts = [min(stage.start, self.steps) for stage in self.stages]
        found: dict[int, float] = {}
        for stage, start, end in zip(self.stages, starts, [*starts[1:], self.steps], strict=True):
            for seqhw, p in zip(stage.seqhw, stage.probabilities, strict=True):
                found[seqhw] = found.get(seqhw, 0.0) + float(p) * (end - start) / self.steps
        return found


@dataclass(frozen=True)
class _Window:
    """A law in which a window moves over the sorted lengths, and the lengths inside it are drawn.

    The lengths divide the line from 0 to 1 in proportion to their weights. The window has the width `spread`, and its
    middle moves from 0 to 1. The parts that reach beyond an end are folded back. Every point of the line is therefore
    drawn equally often over the whole run, and each length as often as its weight says. The run costs the same as
    without a curriculum; only the order changes.
    """

    seqhw: tuple[int, ...]
    edges: np.ndarray  # [n + 1], from 0 to 1
    spread: float
    steps: int

    def at(self, step: int) -> tuple[Sequence[int], np.ndarray]:
        """Return the lengths, and the share of the window that each of them covers."""
        middle = (step + 0.5) / self.steps
        low, high = middle - self.spread / 2, middle + self.spread / 2
        covered = _overlap(low, high, -self.edges, self.edges) + _overlap(low, high, 2 - self.edges, 2 + self.edges)
        probabilities = np.diff(covered).clip(min=0)
        return self.seqhw, probabilities / probabilities.sum()

    def shares(self) -> dict[int, float]:
        """Return each seqhw's expected share, which is the width of its part of the line."""
        found: dict[int, float] = {}
        for seqhw, width in zip(self.seqhw, np.diff(self.edges), strict=True):
            found[seqhw] = found.get(seqhw, 0.0) + float(width)
        return found


def _overlap(low: float, high: float, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return how much of each interval from `starts` to `ends` is between low and high."""
    return np.clip(np.minimum(high, ends) - np.maximum(low, starts), 0, None)


def _stages(config: PatchConfig, horizon: Horizon, cost: Cost) -> _Law:
    """Return the law of the recipe's stages, without a curriculum."""
    stages = [(0, config.seqhw, config.weights)]
    stages += [(horizon.steps_of(stage.start), stage.seqhw, stage.weights) for stage in config.stages]
    found = [_Stage(start, seqhw, _probabilities(seqhw, weights, cost)) for start, seqhw, weights in stages]
    return _Stages(sorted(found, key=lambda stage: stage.start), horizon.steps)


def _clipa(config: PatchConfig, horizon: Horizon, cost: Cost) -> _Law:
    """Return a law with the shorter half of the lengths first, and the longer half for the last `finish`.

    The middle length belongs to the shorter half.
    """
    seqhw, probabilities = _in_order(config, cost)
    half = (len(seqhw) + 1) // 2
    finish = max(0, horizon.steps - horizon.steps_of(config.finish))
    parts = [(0, slice(0, half)), (finish, slice(half, None))]
    stages = [_Stage(start, seqhw[part], probabilities[part] / probabilities[part].sum()) for start, part in parts]
    return _Stages(stages, horizon.steps)


def _moving(direction: Literal[1, -1], config: PatchConfig, horizon: Horizon, cost: Cost) -> _Law:
    """Return a law that moves from the shortest to the longest length (1), or back (-1)."""
    seqhw, probabilities = _in_order(config, cost)
    return _Window(seqhw[::direction], _edges(probabilities[::direction]), config.spread, horizon.steps)


_LAWS: dict[str, Callable[[PatchConfig, Horizon, Cost], _Law]] = {
    "none": _stages,
    "short_to_long": partial(_moving, 1),
    "long_to_short": partial(_moving, -1),
    "clipa": _clipa,
}


def _in_order(config: PatchConfig, cost: Cost) -> tuple[tuple[int, ...], np.ndarray]:
    """Return the lengths that have a weight, shortest first, and their probabilities."""
    drawn = [(s, p) for s, p in zip(config.seqhw, _probabilities(config.seqhw, config.weights, cost), strict=True) if p > 0]
    seqhw, probabilities = zip(*sorted(drawn), strict=True)
    return seqhw, np.array(probabilities)


def _edges(probabilities: np.ndarray) -> np.ndarray:
    """Return where each length begins on the line from 0 to 1, and where the last one ends, which is exactly 1."""
    edges = np.concatenate([[0.0], np.cumsum(probabilities)])
    return edges / edges[-1]


def _probabilities(seqhw: Sequence[int], weights: str | Sequence[float], cost: Cost) -> np.ndarray:
    """Return the probabilities of the lengths, from weights by name or by number."""
    if weights == "inverse_cost":
        raw = np.array([1 / cost(s) for s in seqhw])
    elif weights == "uniform":
        raw = np.ones(len(seqhw))
    else:
        raw = np.array(weights, dtype=np.float64)
    if math.isinf(sum(raw.tolist())):  # a sum of finite numbers may overflow
        raw = raw / raw.max()
    return raw / raw.sum()


TERA = 10**12


def horizon_of(
    train: TrainConfig, patch: PatchConfig, samples: int | None, cost: Cost, pair_flops: Callable[[int], float]
) -> Horizon:
    """Return the horizon of a run.

    `samples`: the samples of an epoch, None if unknown. `cost`: the relative cost of a length, for weights that are
    `inverse_cost`. `pair_flops`: the FLOPs of training on one pair at a length, called only if train.steps is a number
    of FLOPs, such as "30 TFLOPs". The run is then the longest whose expected FLOPs stay within that number. Raises
    UserError if the number is too small for one step.
    """
    length, batch = train.steps, train.global_batch_size
    if length.unit != "TFLOPs":
        return Horizon.of(length, batch, samples)
    flops = {seqhw: pair_flops(seqhw) for seqhw in patch.all_seqhw}

    def spent(steps: int) -> float:
        """Return the TFLOPs that a run with this number of steps is expected to take."""
        schedule = SeqhwSchedule(patch, 0, Horizon(steps, batch, samples), cost)
        return steps * batch * schedule.mean(flops.__getitem__) / TERA

    if spent(1) > length.value:
        raise UserError(f"train.steps={length} is less than one step takes, {spent(1):.3g} TFLOPs")
    low, high = 1, int(length.value * TERA / (batch * min(flops.values()))) + 1
    while high - low > 1:  # spent(low) is within the budget, spent(high) is not
        middle = (low + high) // 2
        low, high = (middle, high) if spent(middle) <= length.value else (low, middle)
    return Horizon(low, batch, samples)


@dataclass(frozen=True)
class RunSchedule:
    """The steps of a run, as they are known before the first one: how many there are, and the length and the rate of each."""

    horizon: Horizon
    seqhw: SeqhwSchedule
    lr: Callable[[int], float]

    @classmethod
    def of(cls, config: Config, samples: int | None, cost: Cost, pair_flops: Callable[[int], float]) -> RunSchedule:
        """Return the schedule of a recipe. The other arguments are those of `horizon_of`, which also says what is raised."""
        horizon = horizon_of(config.train, config.patch, samples, cost, pair_flops)
        seqhw = SeqhwSchedule(config.patch, config.seed, horizon, cost)
        return cls(horizon, seqhw, learning_rate(config.optimizer, horizon))
