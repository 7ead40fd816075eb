"""The order of training: `plan[position]` is the sample at a position of an endless run.

The order is a function of (seed, position). It does not depend on ranks, workers, the batch size or the history of the
run. A step with global batch size G covers the positions step*G to step*G + G - 1, however many processes share it, so
one integer is the whole state of the data.

With one source of n samples, epoch e is the positions e*n to e*n + n - 1. The shards are permuted by (seed, source, e)
and cut into windows of K shards. The samples of a window are permuted by (seed, source, e, window). Each sample
therefore occurs once per epoch, whatever the sizes of the shards, and at most K shards are read at a time.

With several weighted sources, the weights become integer quotas of a block of B positions. The quotas are exact if a
block of at most 4096 positions allows it, and accurate to 1/B otherwise. The sources of the positions in block b are
permuted by (seed, b). Each source yields its samples in its own order and counts its own epochs.

A lookup takes two binary searches. The permutations of the windows and blocks in use are cached.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from flexiclip.draws import Draw, permutation
from flexiclip.errors import UserError

_BLOCK = 4096  # positions over which a mixture keeps its proportions
_PRECISION = 10**6  # the largest denominator of a weight
_Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Source:
    """The number of samples of each shard, int64 [shards], and the source's weight relative to the other sources."""

    counts: npt.NDArray[np.int64]
    weight: float = 1.0


@dataclass(frozen=True)
class PlannedSample:
    """The sample at a position, as shard and sample number inside its source. `epoch` and `window` are the source's own."""

    epoch: int
    source: int
    window: int
    shard: int
    sample: int


class Plan:
    """The order over the positions of a run (see the module's docstring).

    Raises UserError for a source without samples, or with a weight that is too small for a block.
    """

    def __init__(self, sources: Sequence[Source], seed: int, window_shards: int) -> None:
        self.sources = tuple(sources)
        self.seed = seed
        self.window_shards = window_shards
        self.sizes = tuple(int(source.counts.sum()) for source in self.sources)
        for number, size in enumerate(self.sizes):
            if size == 0:
                raise UserError(f"data.train: source {number} of {len(self.sizes)} holds no samples: see flexiclip data index")
        self.quotas = _quotas([source.weight for source in self.sources])

    @property
    def samples(self) -> int:
        """The number of samples of all sources, which is the length of an epoch."""
        return sum(self.sizes)

    def __getitem__(self, position: int) -> PlannedSample:
        """Return the sample at `position`, which is any number from 0 on."""
        assert position >= 0, position
        source, rank = (0, position) if len(self.sources) == 1 else self._allocate(position)
        epoch, rank = divmod(rank, self.sizes[source])
        order, ends = _epoch(self, source, epoch)
        window = int(np.searchsorted(ends, rank, side="right")) // self.window_shards
        start = _before(ends, window * self.window_shards)
        rank = start + int(_window(self, source, epoch, window)[rank - start])
        slot = int(np.searchsorted(ends, rank, side="right"))
        return PlannedSample(epoch, source, window, shard=int(order[slot]), sample=rank - _before(ends, slot))

    def window(self, planned: PlannedSample) -> list[int]:
        """Return the shards of the window that contains a sample."""
        order, _ = _epoch(self, planned.source, planned.epoch)
        first = planned.window * self.window_shards
        return [int(shard) for shard in order[first : first + self.window_shards]]

    def _allocate(self, position: int) -> tuple[int, int]:
        """Return (source, number of earlier positions that belong to this source)."""
        block, place = divmod(position, sum(self.quotas))
        owners, ranks = _block(self, block)
        source = int(owners[place])
        return source, block * self.quotas[source] + int(ranks[place])


def _before(ends: _Array, slot: int) -> int:
    """Return where slot `slot` begins, given where each slot ends."""
    return int(ends[slot - 1]) if slot else 0


# The caches are keyed by the plan's identity. They are small because a run moves forward through windows and blocks.
@functools.lru_cache(maxsize=32)
def _epoch(plan: Plan, source: int, epoch: int) -> tuple[_Array, _Array]:
    """Return the order of the shards, and where each of them ends within the epoch."""
    counts = plan.sources[source].counts
    order = permutation(len(counts), plan.seed, Draw.SHARDS, source, epoch)
    return order, np.cumsum(counts[order])


@functools.lru_cache(maxsize=32)
def _window(plan: Plan, source: int, epoch: int, window: int) -> _Array:
    """Return the permutation of the samples of a window."""
    _, ends = _epoch(plan, source, epoch)
    first = window * plan.window_shards
    last = min(first + plan.window_shards, len(ends))
    return permutation(_before(ends, last) - _before(ends, first), plan.seed, Draw.WINDOW, source, epoch, window)


@functools.lru_cache(maxsize=32)
def _block(plan: Plan, block: int) -> tuple[_Array, _Array]:
    """Return, for each position of the block, its source and how many earlier positions of the block have the same source."""
    quotas = plan.quotas
    owners = np.repeat(np.arange(len(quotas)), quotas)[permutation(sum(quotas), plan.seed, Draw.BLOCK, block)]
    ranks = np.empty_like(owners)
    ranks[np.argsort(owners, kind="stable")] = np.concatenate([np.arange(quota) for quota in quotas])
    return owners, ranks


def _quotas(weights: Sequence[float]) -> tuple[int, ...]:
    """Return how many positions of a block each source gets."""
    # If all weights are large enough, they are used as they are, which resumed runs rely on.
    # Otherwise they are divided by the largest.
    unit = Fraction(1) if min(weights) >= 1 / _PRECISION else Fraction(max(weights))
    parts = [(Fraction(weight) / unit).limit_denominator(_PRECISION) for weight in weights]
    total = sum(parts)
    shares = [part / total for part in parts]
    exact = math.lcm(*(share.denominator for share in shares))
    block = _BLOCK // exact * exact if exact <= _BLOCK else _BLOCK
    quotas = [int(share * block) for share in shares]
    # The sources with the largest remainders get the positions that rounding down has left over.
    by_remainder = sorted(range(len(shares)), key=lambda s: quotas[s] - shares[s] * block)
    for source in by_remainder[: block - sum(quotas)]:
        quotas[source] += 1
    for weight, quota in zip(weights, quotas, strict=True):
        if quota == 0:
            raise UserError(f"data.train: weight {weight:g} is below 1/{_BLOCK} of all weights: raise it or leave the source out")
    return tuple(quotas)
