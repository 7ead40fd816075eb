"""The steps of a run, as they are known before the first one: their number, the length of each, and its FLOPs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from flexiclip.config import Config
from flexiclip.errors import UserError
from flexiclip.models.flops import image_model_flops, pair_flops, text_cost
from flexiclip.models.text import TextTower
from flexiclip.schedules import Horizon, SeqhwSchedule, horizon_of


@dataclass(frozen=True)
class Course:
    """The steps of a run: how many there are, their lengths (`seqhw(step)`), and their FLOPs."""

    horizon: Horizon
    seqhw: SeqhwSchedule
    pair_flops: dict[int, int] | None = None
    """seqhw -> FLOPs of training on a pair. None if the FLOPs of another library's text tower cannot be counted."""

    @classmethod
    def of(cls, config: Config, samples: int | None) -> Course:
        """Return the course of a recipe. samples: per epoch, None if unknown.

        Raises UserError if the number of steps cannot be computed from train.steps.
        """
        cost = partial(image_model_flops, config.model)
        counted = _pair_flops(config, samples) if config.train.steps.unit == "TFLOPs" else {}
        horizon = horizon_of(config, samples, cost, counted.__getitem__)
        return cls(horizon, SeqhwSchedule(config.patch, config.seed, horizon, cost))

    def counted(self, config: Config, tower: TextTower) -> Course:
        """Return the course with the FLOPs of its lengths. tower: the model's text tower, before an engine shards it."""
        try:
            return replace(self, pair_flops=_pair_flops(config, self.horizon.samples, tower))
        except UserError:
            return self

    def flops(self, steps: range) -> int:
        """FLOPs of these steps (counted from 0) over all ranks; 0 if they cannot be counted."""
        if self.pair_flops is None:
            return 0
        return self.horizon.batch * sum(self.pair_flops[self.seqhw(step)] for step in steps)


def _pair_flops(config: Config, samples: int | None, tower: TextTower | None = None) -> dict[int, int]:
    text = text_cost(config, tower, samples)
    return {seqhw: pair_flops(config.model, text, seqhw).model for seqhw in config.patch.all_seqhw}
