"""Random numbers that depend only on a key, such as (seed, purpose, place), and that no version of numpy changes.

    Stream(seed, step).random()        # the same number in every process, on every machine, in every version

Everything is computed here from the raw 64-bit words of PCG64. numpy promises to keep the words of a bit generator and
the way in which SeedSequence seeds it. It does not promise to keep what Generator computes from them (`choice`,
`random`, `beta`, `permutation`), and a resumed run must not depend on that. The methods of Stream compute what
Generator of numpy 2.4 computes from the same words, so runs that were started with Generator continue unchanged.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_right
from collections.abc import Iterable
from enum import IntEnum
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt

_TABLES = Path(__file__).with_name("ziggurat.npy")
_TINY = 3e-103  # for p below this, Beta(p, p) only yields 0 and 1
_TAIL = 3.6541528853610088  # the end of the lowest strip of the ziggurat


class Stream:
    """Numbers drawn one after the other.

    `key`: integers that identify the stream; a negative number counts modulo 2^64.
    """

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence([int(n) if n >= 0 else int(n) % 2**64 for n in key]))

    def word(self) -> int:
        """Return the next 64 bits."""
        return int(self._bits.random_raw())

    def random(self) -> float:
        """Return a uniform number in [0, 1), a multiple of 2^-53."""
        return (self.word() >> 11) * 2.0**-53

    def below(self, count: int) -> int:
        """Return one number of 0..count-1."""
        return self.word() % count  # the bias of % is only count / 2^64

    def permutation(self, count: int) -> npt.NDArray[np.int64]:
        """Return a permutation of 0..count-1, int64 [count]."""
        return np.argsort(self._bits.random_raw(count), kind="stable")

    def weighted_index(self, weights: Iterable[float]) -> int:
        """Return the index of one of the weights, drawn with a probability in proportion to the weight.

        Weights are 0 or more, and not all 0.
        """
        ends = list(accumulate(map(float, weights)))
        return bisect_right([end / ends[-1] for end in ends], self.random())

    def beta(self, p: float) -> float:
        """Return a number of the distribution Beta(p, p), from 0 to 1."""
        if p < _TINY:
            return float(self.random() < 0.5)
        if p > 1:
            first, second = self._gamma(p), self._gamma(p)
            return first / (first + second)
        while True:  # Jöhnk's method
            u, v = self.random(), self.random()
            x, y = math.pow(u, 1 / p), math.pow(v, 1 / p)
            if x + y > 1 or u + v == 0:
                continue
            if x > 0 and y > 0:
                return x / (x + y)
            difference = _log(u) / p - _log(v) / p  # at least one of the powers is too small for a float
            if difference > 0:
                return math.exp(-math.log1p(math.exp(-difference)))
            return math.exp(difference - math.log1p(math.exp(difference)))

    def _gamma(self, shape: float) -> float:
        """Return a number of Gamma(shape, 1) for a shape above 1, by Marsaglia and Tsang's method."""
        b = shape - 1 / 3
        c = 1 / math.sqrt(9 * b)
        while True:
            x = self._normal()
            v = 1 + c * x
            if v <= 0:
                continue
            v, u = v * v * v, self.random()
            if u < 1 - 0.0331 * (x * x) * (x * x) or _log(u) < 0.5 * x * x + b * (1 - v + math.log(v)):
                return b * v

    def _normal(self) -> float:
        """Return a number of the standard normal distribution, by Marsaglia and Tsang's ziggurat with 256 strips."""
        limits, scales, heights = _ziggurat()
        while True:
            word = self.word()
            strip, negative, magnitude = word & 0xFF, word >> 8 & 1, word >> 9 & (2**52 - 1)
            x = magnitude * scales[strip]
            x = -x if negative else x
            if magnitude < limits[strip]:
                return x
            if strip == 0:
                return self._tail(negative=bool(magnitude >> 8 & 1))
            if (heights[strip - 1] - heights[strip]) * self.random() + heights[strip] < math.exp(-0.5 * x * x):
                return x

    def _tail(self, negative: bool) -> float:
        """Return a number of the normal distribution beyond the ziggurat."""
        while True:
            x = -math.log1p(-self.random()) * (1 / _TAIL)
            y = -math.log1p(-self.random())
            if 2 * y > x * x:
                return -(_TAIL + x) if negative else _TAIL + x


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf


@functools.cache
def _ziggurat() -> tuple[list[int], list[float], list[float]]:
    """Return (limits, scales, heights) of the strips, from `ki_double`, `wi_double` and `fi_double` of numpy.

    These are tables in numpy's ziggurat_constants.h. They are read from a file, because computing them would round the
    last bits differently.
    """
    tables = np.load(_TABLES, allow_pickle=False)  # [3, 256], two of the rows are floats stored as integers
    return tables[0].tolist(), tables[1].view(np.float64).tolist(), tables[2].view(np.float64).tolist()


class Draw(IntEnum):
    """The purpose of a stream. Streams of different purposes never share numbers."""

    SHARDS = 1  # order of the shards in an epoch
    WINDOW = 2  # order of the samples in a window
    BLOCK = 3  # order of the sources in a block
    AUGMENT = 4  # caption choice, crop and flip
    SUBSTITUTE = 5  # the substitute of an unreadable sample
    SEQUENTIAL = 6  # shard order and shuffling of a sequential source
    DROPOUT = 7  # torch's seed for a micro-batch
    MIXUP = 8  # the share of itself that each image keeps in a step's mixture


def stream(seed: int, purpose: Draw, *place: int) -> Stream:
    """Return the stream of one purpose and place."""
    return Stream(seed % 2**64, int(purpose), *place)


def permutation(count: int, seed: int, purpose: Draw, *place: int) -> npt.NDArray[np.int64]:
    """Return a permutation of 0..count-1, int64 [count]."""
    return stream(seed, purpose, *place).permutation(count)


def below(count: int, seed: int, purpose: Draw, *place: int) -> int:
    """Return one number of 0..count-1."""
    return stream(seed, purpose, *place).below(count)
