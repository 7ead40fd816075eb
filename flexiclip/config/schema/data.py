"""The sections `data` and `patch`: the training shards, how a sample is read, and the lengths that are trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from flexiclip.config.durations import Duration, parse_duration
from flexiclip.config.schema.checks import positive, require, seconds


@dataclass(frozen=True)
class SourceConfig:
    """One training source of a weighted mixture."""

    shards: str | tuple[str, ...]
    weight: float = 1.0

    def __post_init__(self) -> None:
        require(math.isfinite(self.weight), f"data.train.weight={self.weight} must be a finite number")
        positive("data.train", self, "weight")


@dataclass(frozen=True)
class DataConfig:
    """Training shards and how a sample is read. Caption choice and augmentation depend on (seed, epoch, sample) alone."""

    train: str | tuple[str | SourceConfig, ...] = ()  # a glob, a brace range, a list of them, or a list of {shards, weight}
    image_keys: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
    captions: tuple[str, ...] = ("txt",)  # members or json fields (`json:caption`); one is drawn when there are several
    labels: str | None = None  # of objective=classification: the member `cls`, or a json field (`json:category`)
    sequential: bool = False  # webdataset's own pipeline, for sources that cannot seek; does not resume exactly
    allow_shell: bool = False  # permits pipe: sources
    window_shards: int = 16  # shards read at once; samples are shuffled inside the window
    workers: int = 2  # processes a rank
    prefetch: int = 4  # batches a worker keeps ready
    crop_scale: tuple[float, float] = (0.4, 1.0)  # area of the random crop, as a fraction of the image
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: bool = False  # horizontal, with probability 1/2; off because captions may say left and right
    scaled_decoding: bool = True  # JPEGs at 1/2, 1/4 or 1/8 where every crop keeps its pixels: fast, not exact; training only
    mixup: float = 0.0  # p of Beta(p, p), 0 for none: each image is mixed with another, its classes too (arXiv 1710.09412)
    index_cache: str | None = None  # folder for shard indices; default: beside the shard, else a user cache folder
    read_attempts: int = 4  # of a read that fails, waiting longer each time; after them the sample is replaced
    read_timeout_s: float = 60.0  # seconds that one attempt at a remote read may take
    stall_s: float = 300.0  # seconds without a batch after which the run says what its workers are at
    max_bad_fraction: float = 0.1  # of the samples read that cannot be used: a larger share ends the run

    def __post_init__(self) -> None:
        positive("data", self, "window_shards", "prefetch", "read_attempts")
        seconds("data", self, "read_timeout_s", "stall_s")
        require(0 <= self.max_bad_fraction <= 1, f"data.max_bad_fraction={self.max_bad_fraction} must lie between 0 and 1")
        require(self.workers >= 0, f"data.workers={self.workers} must be 0 or more")
        require(self.mixup >= 0, f"data.mixup={self.mixup} must be 0 or more")
        low, high = self.crop_scale
        require(0 < low <= high <= 1, f"data.crop_scale={self.crop_scale} must satisfy 0 < low <= high <= 1")
        low, high = self.crop_ratio
        require(0 < low <= high, f"data.crop_ratio={self.crop_ratio} must satisfy 0 < low <= high")


@dataclass(frozen=True)
class PatchStage:
    """A part of a patch-size curriculum: from `start` on, these lengths and weights."""

    start: Duration
    seqhw: tuple[int, ...]
    weights: str | tuple[float, ...] = "uniform"


@dataclass(frozen=True)
class PatchConfig:
    """The sequence lengths drawn in training: one seqhw (grid side) a step, a pure function of (seed, step)."""

    seqhw: tuple[int, ...] = (5, 6, 8, 10, 12, 15, 16, 20, 24, 30)
    weights: str | tuple[float, ...] = "uniform"  # uniform | inverse_cost | one number a length
    stages: tuple[PatchStage, ...] = ()  # later stages override the two keys above from their start on
    # Or a curriculum by name. The first two draw from a window that moves over the lengths: each is drawn as often as `weights`
    # says, in another order. clipa: the shorter half of the lengths, and at the end the longer half (arXiv 2305.07017).
    curriculum: Literal["none", "short_to_long", "long_to_short", "clipa"] = "none"
    spread: float = 1.0  # of the window: the part of the lengths that it covers, by weight; 2 covers all of them at any time
    finish: Duration = parse_duration("5%")  # of clipa: how long the longer half is trained

    def __post_init__(self) -> None:
        for seqhw, weights in [(self.seqhw, self.weights), *((s.seqhw, s.weights) for s in self.stages)]:
            _check_lengths(seqhw, weights)
        require(0 < self.spread <= 2, f"patch.spread={self.spread} must be above 0 and at most 2")
        if self.curriculum == "none":
            return
        require(not self.stages, f"patch.curriculum={self.curriculum} and patch.stages both order the lengths: give one of them")
        drawn = set(_with_weight(self.seqhw, self.weights))
        require(len(drawn) > 1, f"patch.curriculum={self.curriculum} needs two lengths in patch.seqhw that have a weight")

    @property
    def all_seqhw(self) -> list[int]:
        """Every length that the section names, also one that is never drawn; `Config.trained_seqhw` leaves those out."""
        return sorted({*self.seqhw, *(s for stage in self.stages for s in stage.seqhw)})

    def drawn_until(self, end: Duration) -> tuple[int, ...]:
        """The lengths that a run of this duration draws at some time, shortest first.

        Left out are lengths of weight 0, those of a part that another part replaces from its first step on, and those of a part
        that starts at the end or later. Durations in different units are compared where one of them is 0 or a percentage only.
        """
        first = _with_weight(self.seqhw, self.weights)
        if self.curriculum == "clipa":
            half = (len(first) + 1) // 2
            shorter = () if _reaches(self.finish, end) else first[:half]
            return tuple(sorted({*shorter, *(first[half:] if self.finish.value else ())}))
        parts = [(Duration(0, "steps"), first), *((s.start, _with_weight(s.seqhw, s.weights)) for s in self.stages)]
        found: set[int] = set()
        for i, (start, lengths) in enumerate(parts):
            replaced = any(start == other or start.value == other.value == 0 for other, _ in parts[i + 1 :])
            if not replaced and not _reaches(start, end):
                found.update(lengths)
        return tuple(sorted(found))


def _with_weight(seqhw: tuple[int, ...], weights: str | tuple[float, ...]) -> list[int]:
    """The lengths that have a weight, shortest first."""
    given = (1.0,) * len(seqhw) if isinstance(weights, str) else weights
    return sorted(s for s, weight in zip(seqhw, given, strict=True) if weight > 0)


def _reaches(duration: Duration, end: Duration) -> bool:
    """Whether a duration is the whole run or longer, as far as its unit says so."""
    return duration.value >= 100 if duration.unit == "percent" else duration.unit == end.unit and duration.value >= end.value


def _check_lengths(seqhw: tuple[int, ...], weights: str | tuple[float, ...]) -> None:
    require(bool(seqhw), "patch.seqhw is empty: name at least one length")
    require(all(s > 0 for s in seqhw), f"patch.seqhw={list(seqhw)} must be positive")
    if isinstance(weights, str):
        require(weights in ("uniform", "inverse_cost"), f"patch.weights={weights}: uniform, inverse_cost or a list of numbers")
        return
    require(len(weights) == len(seqhw), f"patch.weights has {len(weights)} numbers for {len(seqhw)} lengths in patch.seqhw")
    require(all(w >= 0 for w in weights) and sum(weights) > 0, f"patch.weights={list(weights)} must be 0 or more, not all 0")
