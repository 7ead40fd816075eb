"""Random numbers as pure functions of where they are used: (seed, purpose, numbers that name the place).

Order is drawn from the raw words of PCG64 under SeedSequence, whose streams numpy promises never to change; Generator.permutation
carries no such promise, and a resumed run must not depend on the numpy version.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt


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


def _bits(seed: int, purpose: Draw, place: tuple[int, ...]) -> np.random.PCG64:
    return np.random.PCG64(np.random.SeedSequence([seed % 2**64, int(purpose), *place]))


def generator(seed: int, purpose: Draw, *place: int) -> np.random.Generator:
    """A generator of its own for one place."""
    return np.random.Generator(_bits(seed, purpose, place))


def permutation(count: int, seed: int, purpose: Draw, *place: int) -> npt.NDArray[np.int64]:
    """A permutation of 0..count-1, int64 [count]."""
    return np.argsort(_bits(seed, purpose, place).random_raw(count), kind="stable")


def below(count: int, seed: int, purpose: Draw, *place: int) -> int:
    """One number of 0..count-1."""
    return int(_bits(seed, purpose, place).random_raw()) % count  # the bias of % is count / 2^64
