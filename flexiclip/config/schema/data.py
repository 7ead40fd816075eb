"""The sections `data` and `patch`: the training shards, how a sample is read, and the sequence lengths that are trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from flexiclip.config.keys import Duration, about, key, parse_duration, positive, require, seconds


@dataclass(frozen=True)
class SourceConfig:
    """One training source of a weighted mixture."""

    shards: str | tuple[str, ...] = field(
        metadata=about("Shards of this source: a path, brace range, glob or URL, or a list of them.")
    )
    weight: float = key(
        1.0, "Share of the samples that are drawn from this source, relative to the other weights and whatever its size. Above 0."
    )

    def __post_init__(self) -> None:
        require(math.isfinite(self.weight), f"data.train.weight={self.weight} must be a finite number")
        positive("data.train", self, "weight")


@dataclass(frozen=True)
class DataConfig:
    """The training shards and how a sample is read. Caption and augmentation depend on (seed, epoch, sample) alone."""

    train: str | tuple[str | SourceConfig, ...] = key(
        (),
        "Training shards: a path, brace range, glob or URL, or a list of them. A list of {shards, weight} is a weighted mixture "
        "of sources.",
    )
    image_keys: tuple[str, ...] = key(
        ("jpg", "jpeg", "png", "webp"), "Extensions of the image member, tried in this order. The content decides the format."
    )
    captions: tuple[str, ...] = key(
        ("txt",),
        "Where captions are: members such as txt (txt:lines for one caption on each line), or JSON fields such as json:caption. "
        "A sample with several captions gets one of them in each epoch, chosen at random.",
    )
    labels: str | None = key(
        None,
        "Where the class of a sample is, for objective=classification: the member cls, or a JSON field such as json:category. "
        "null: classes are not read.",
    )
    sequential: bool = key(
        False,
        "Stream the shards through webdataset's own pipeline, for sources that cannot seek. Such a run has no epochs and does "
        "not resume exactly.",
    )
    allow_shell: bool = key(False, "Permit shards that are `pipe:COMMAND`. Only a recipe file may set it, not the command line.")
    window_shards: int = key(
        16, "Number of shards that samples are shuffled within. More shards mix better and are read from at the same time."
    )
    workers: int = key(2, "Worker processes per rank that read and decode samples. 0 reads in the trainer itself.", resume=True)
    prefetch: int = key(4, "Batches that each worker keeps ready.", resume=True)
    crop_scale: tuple[float, float] = key(
        (0.4, 1.0), "Smallest and largest area of the random crop, as a fraction of the image. Above 0 and at most 1."
    )
    crop_ratio: tuple[float, float] = key(
        (0.75, 4 / 3), "Smallest and largest aspect ratio (width / height) of the random crop, relative to that of image_size."
    )
    flip: bool = key(False, "Mirror half of the images, left to right. Off by default because captions may say left and right.")
    scaled_decoding: bool = key(
        True,
        "Decode a large JPEG at 1/2, 1/4 or 1/8 of its size if every possible crop keeps enough pixels. Faster, but not exactly "
        "the same pixels; only training does it.",
    )
    mixup: float = key(
        0.0,
        "Mix each image and its classes with another one, in shares drawn from Beta(mixup, mixup) (arXiv 1710.09412). Needs "
        "model.text=null; 0 turns it off.",
    )
    index_cache: str | None = key(
        None,
        "Folder for the shards' indices. null: each index is written next to its shard, or into the user's cache folder if that "
        "is not possible.",
        resume=True,
    )
    read_attempts: int = key(
        4, "Attempts at a read that fails, with growing pauses. After the last one, another sample is used.", resume=True
    )
    read_timeout_s: float = key(60.0, "Time limit of one attempt at a remote read, in seconds.", resume=True)
    stall_s: float = key(
        300.0,
        "Seconds without a batch after which the run reports what each data worker is doing. After ten times that, the run ends.",
        resume=True,
    )
    max_bad_fraction: float = key(
        0.1,
        "Largest fraction of the samples that may be unusable, from 0 to 1; above it, the run saves and ends. A run does not "
        "start if a larger fraction of its shards is damaged.",
        resume=True,
    )

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
    """One part of a patch-size curriculum."""

    start: Duration = field(
        metadata=about(
            "When this stage begins: steps, epochs, samples or a percentage of the run. It ends when the next one begins."
        )
    )
    seqhw: tuple[int, ...] = field(metadata=about("Grid sides that are drawn in this stage."))
    weights: str | tuple[float, ...] = key("uniform", "How often each of them is drawn, as patch.weights.")


@dataclass(frozen=True)
class PatchConfig:
    """The sequence lengths of the training: one seqhw (grid side) per step, a pure function of (seed, step)."""

    seqhw: tuple[int, ...] = key(
        (5, 6, 8, 10, 12, 15, 16, 20, 24, 30),
        "Grid sides to draw from. Each must divide model.image.image_size; a side of 15 gives 225 tokens.",
    )
    weights: str | tuple[float, ...] = key(
        "uniform",
        "How often each grid side is drawn: uniform, inverse_cost (in inverse proportion to its FLOPs), or one number for each "
        "side.",
    )
    stages: tuple[PatchStage, ...] = key(
        (), "A curriculum written out. From its start on, a stage replaces patch.seqhw and patch.weights."
    )
    curriculum: Literal["none", "short_to_long", "long_to_short", "clipa"] = key(
        "none",
        "A curriculum by name (FlexiViT, section 5.4). short_to_long and long_to_short move a window over the lengths and draw "
        "each as often as patch.weights says; clipa trains the shorter half of them and finally the longer half (arXiv "
        "2305.07017).",
    )
    spread: float = key(
        1.0,
        "Width of the window of short_to_long and long_to_short, as a share of the lengths by weight. Above 0 and at most 2, "
        "which covers all lengths at any time.",
    )
    finish: Duration = key(
        parse_duration("5%"),
        "How long clipa trains the longer half of the lengths at the end: steps, epochs, samples or a percentage of the run.",
    )

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
        """Every length that the section names, including those that are never drawn; `Config.trained_seqhw` leaves these out."""
        return sorted({*self.seqhw, *(s for stage in self.stages for s in stage.seqhw)})

    def drawn_until(self, end: Duration) -> tuple[int, ...]:
        """The lengths that a run of this duration draws at some time, shortest first.

        A length is left out if its weight is 0, if its stage is replaced by another one from its first step on, or if its stage
        starts at the end of the run or later. Durations in different units are compared only if one of them is 0 or a percentage.
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
    """Whether a duration is at least as long as the run. False if their units cannot be compared."""
    return duration.value >= 100 if duration.unit == "percent" else duration.unit == end.unit and duration.value >= end.value


def _check_lengths(seqhw: tuple[int, ...], weights: str | tuple[float, ...]) -> None:
    require(bool(seqhw), "patch.seqhw is empty: name at least one length")
    require(all(s > 0 for s in seqhw), f"patch.seqhw={list(seqhw)} must be positive")
    if isinstance(weights, str):
        require(weights in ("uniform", "inverse_cost"), f"patch.weights={weights}: uniform, inverse_cost or a list of numbers")
        return
    require(len(weights) == len(seqhw), f"patch.weights has {len(weights)} numbers for {len(seqhw)} lengths in patch.seqhw")
    require(all(w >= 0 for w in weights) and sum(weights) > 0, f"patch.weights={list(weights)} must be 0 or more, not all 0")
