"""The random numbers of the data, as pure functions of where they are used: (seed, purpose, numbers that name the place)."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from flexiclip.draws import Stream


class Draw(IntEnum):
    """What a stream is for; distinct purposes never share numbers."""

    SHARDS = 1  # order of the shards in an epoch
    WINDOW = 2  # order of the samples in a window
    BLOCK = 3  # order of the sources in a block
    AUGMENT = 4  # caption choice, crop and flip
    SUBSTITUTE = 5  # what replaces an unreadable sample
    SEQUENTIAL = 6  # shard order and shuffling of a sequential source
    DROPOUT = 7  # torch's seed for a micro-batch
    MIXUP = 8  # how much of each image a step's mixture keeps


def stream(seed: int, purpose: Draw, *place: int) -> Stream:
    """A stream of its own for one place."""
    return Stream(seed % 2**64, int(purpose), *place)


def permutation(count: int, seed: int, purpose: Draw, *place: int) -> npt.NDArray[np.int64]:
    """A permutation of 0..count-1, int64 [count]."""
    return stream(seed, purpose, *place).permutation(count)


def below(count: int, seed: int, purpose: Draw, *place: int) -> int:
    """One number of 0..count-1."""
    return stream(seed, purpose, *place).below(count)
