"""A run as long as its FLOPs allow: train.steps="30 TFLOPs"."""

from __future__ import annotations

from collections.abc import Callable

from flexiclip.config import Config
from flexiclip.errors import UserError
from flexiclip.schedules.horizon import Horizon
from flexiclip.schedules.lengths import Cost, SeqhwSchedule

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
