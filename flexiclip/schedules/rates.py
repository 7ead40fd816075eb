"""The learning rate: warm-up and cool-down around cosine, rsqrt or constant (big_vision's create_learning_rate_schedule)."""

from __future__ import annotations

import math
from collections.abc import Callable

from flexiclip.config import OptimizerConfig
from flexiclip.schedules.horizon import Horizon


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
