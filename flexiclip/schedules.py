"""What changes over training, each a pure function of the step: the sequence length, the micro-batch and the learning rate.

Sequence length: one seqhw a step, drawn from (seed, step) as in FlexiViT (arXiv 2212.08013, section 3.2), so every rank knows it
without being told and a resumed run draws the same list. Learning rate: warm-up and cool-down around cosine, rsqrt or constant,
as in big_vision's utils.create_learning_rate_schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from flexiclip.config import Config, Duration, OptimizerConfig, PatchConfig, to_steps


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


@dataclass(frozen=True)
class _Stage:
    start: int  # step
    seqhw: tuple[int, ...]
    probabilities: np.ndarray


class SeqhwSchedule:
    """step -> seqhw. `cost` gives the relative cost of a length, for weights that are `inverse_cost`."""

    def __init__(self, config: PatchConfig, seed: int, horizon: Horizon, cost: Callable[[int], float]) -> None:
        self.seed = seed
        stages = [(0, config.seqhw, config.weights)]
        stages += [(horizon.steps_of(stage.start), stage.seqhw, stage.weights) for stage in config.stages]
        self.stages = sorted(
            (_Stage(start, s, _probabilities(s, w, cost)) for start, s, w in stages), key=lambda stage: stage.start
        )

    def __call__(self, step: int) -> int:
        """The grid side that step `step` (from 0) trains."""
        stage = self._stage(step)
        return int(np.random.default_rng((self.seed, step)).choice(stage.seqhw, p=stage.probabilities))

    def expected(self, step: int, value: Callable[[int], float]) -> float:
        """The mean of `value(seqhw)` over the lengths drawn at `step`."""
        stage = self._stage(step)
        return float(sum(p * value(s) for s, p in zip(stage.seqhw, stage.probabilities, strict=True)))

    def _stage(self, step: int) -> _Stage:
        return [stage for stage in self.stages if stage.start <= step][-1]


def _probabilities(seqhw: Sequence[int], weights: str | Sequence[float], cost: Callable[[int], float]) -> np.ndarray:
    if weights == "inverse_cost":
        raw = np.array([1 / cost(s) for s in seqhw])
    elif weights == "uniform":
        raw = np.ones(len(seqhw))
    else:
        raw = np.array(weights, dtype=np.float64)
    return raw / raw.sum()


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
