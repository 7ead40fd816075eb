"""Training samples, batches, mixup, and the hand-over of batches from data workers through shared memory.

Left alone, torch moves a batch into shared memory in a background thread of the data worker. When /dev/shm is full
(docker gives a container 64 MB), that thread prints a traceback and drops the batch, and the trainer waits for the
batch forever. `shared` therefore moves the batch in the worker's own thread, and turns a lack of memory into one line
that names the fix.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch.utils.data import get_worker_info

from flexiclip.data.samples import BadSample, Labels
from flexiclip.draws import Draw, stream
from flexiclip.errors import RunError, UserError
from flexiclip.files import size_text


@dataclass(frozen=True)
class Mixup:
    """Mixup (arXiv 1710.09412): mixes each image, and its classes, with the one before it in the global batch.

    The share that an image keeps is drawn once per step from Beta(`p`, `p`), with `p` above 0; small values of `p`
    leave the images of most steps nearly unchanged. The kept share is the larger part, as in big_vision's get_mixup. It
    depends on (seed, step), and the partner depends on the position in the global batch, so the mixture does not depend
    on the number of ranks. Mixed pixels are rounded to whole grey levels, because float32 pixels would take four times
    the bytes. A teacher sees the same mixed images as its student.
    """

    p: float
    seed: int

    def kept(self, step: int) -> float:
        """Return the share of itself that each image keeps in this step, from 0.5 to 1."""
        drawn = stream(self.seed, Draw.MIXUP, step).beta(self.p)
        return max(drawn, 1 - drawn)


def mix(images: torch.Tensor, before: torch.Tensor, kept: float) -> None:
    """Set each image to `kept * image + (1 - kept) * previous image`, rounded, in place.

    `images`: uint8 [b, 3, H, W]. `before`: [3, H, W], the image before the first one.
    """
    for i in reversed(range(len(images))):  # from the end, so that the image before is still unmixed
        images[i] = (kept * images[i].float()).add_((images[i - 1] if i else before).float(), alpha=1 - kept).round_()


Tokenize = Callable[[list[str]], torch.Tensor]
TENSORS = ("images", "tokens", "caption_ids", "labels", "shares")
"""The tensor fields of a batch, which are moved to the device."""


@dataclass(frozen=True)
class BatchSpec:
    """The parts of a batch that the section `data` of the recipe does not decide.

    `image_size`: (H, W) in pixels. `interpolation`: how images are resized, `bilinear` or `bicubic`. `tokenizer`: maps
    list[str] to int64 [N, L], or None if no captions are wanted. `labels`: where the class labels are, or None if none
    are wanted.
    """

    image_size: tuple[int, int]
    interpolation: str
    tokenizer: Tokenize | None = None
    labels: Labels | None = None


@dataclass(frozen=True)
class RankSteps:
    """The steps start_step to start_step + steps - 1 of a run with this seed, and the rank whose part of them is loaded.

    Raises UserError if the ranks cannot share the batch evenly.
    """

    seed: int
    global_batch_size: int
    start_step: int
    steps: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.global_batch_size % self.world:
            raise UserError(
                f"train.global_batch_size={self.global_batch_size} does not divide by the {self.world} ranks of this run"
            )

    @property
    def numbers(self) -> range:
        """The numbers of the steps."""
        return range(self.start_step, self.start_step + self.steps)

    @property
    def size(self) -> int:
        """The number of samples of each step that this rank loads."""
        return self.global_batch_size // self.world


@dataclass(frozen=True)
class TrainSample:
    """One training sample.

    `pixels`: uint8 [3, H, W], in any memory layout. `caption`: "" if no captions are read. `bad`: the unreadable
    samples that this one replaces. `labels`: the numbers of its classes, () if no labels are read.
    """

    pixels: torch.Tensor
    caption: str
    name: str
    bad: tuple[BadSample, ...] = ()
    labels: tuple[int, ...] = ()


@dataclass(frozen=True)
class Batch:
    """One rank's part of a step, with b samples.

    - `images`: uint8 [b, 3, H, W].
    - `tokens`: int64 [b, L], with L = 0 if no captions are read.
    - `caption_ids`: int64 [b], equal for exactly those samples whose captions are equal.
    - `labels`: int64 [b, M], the classes of each image.
    - `shares`: float32 [b, M], the share of each class, 0 where an image has fewer than M classes.
    - `samples`: `SHARD/KEY` of each sample.
    - `bad`: {shard, key, reason} of every unreadable sample that was replaced.
    """

    step: int
    images: torch.Tensor
    tokens: torch.Tensor
    caption_ids: torch.Tensor
    captions: list[str]
    labels: torch.Tensor
    shares: torch.Tensor
    samples: list[str]
    bad: list[dict[str, str]]

    def pin_memory(self) -> Batch:
        """Return the same batch in page-locked memory. torch's DataLoader calls this."""
        pinned = {name: getattr(self, name).pin_memory() for name in TENSORS}
        return replace(self, **pinned)


BatchOrError = Batch | UserError | RunError
"""The result of a data worker. An error that ends the run is a value, because torch would hide it in a worker's traceback."""


def caption_id(caption: str) -> int:
    """Return a 63-bit number that depends only on the text, so it is the same on every rank and in every run."""
    return int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True)
class Collate:
    """Makes a Batch of training samples.

    `tokenizer`: None if no captions are read.
    """

    tokenizer: Tokenize | None
    mixup: Mixup | None = None

    def __call__(self, step: int, samples: Sequence[TrainSample], before: TrainSample | None = None) -> Batch:
        """Tokenize and stack the samples.

        With mixup, each image is mixed with the one before it, and the first image with `before`.
        """
        captions = [sample.caption for sample in samples]
        images = torch.empty((len(samples), *samples[0].pixels.shape), dtype=torch.uint8)
        for image, sample in zip(images, samples, strict=True):
            image.copy_(sample.pixels)  # the only copy; it also makes the memory contiguous
        labels, shares = _labels(samples)
        if self.mixup is not None:
            assert before is not None, "the loader reads one sample more for mixup"
            kept = self.mixup.kept(step)
            mix(images, before.pixels, kept)
            others, their_shares = _labels([before, *samples[:-1]])
            labels, shares = torch.hstack([labels, others]), torch.hstack([kept * shares, (1 - kept) * their_shares])
        return Batch(
            step=step,
            images=images,
            tokens=self._tokens(captions),
            caption_ids=torch.tensor([caption_id(caption) for caption in captions], dtype=torch.int64),
            captions=captions,
            labels=labels,
            shares=shares,
            samples=[sample.name for sample in samples],
            bad=[error.as_dict() for sample in samples for error in sample.bad],
        )

    def _tokens(self, captions: list[str]) -> torch.Tensor:
        if self.tokenizer is None:
            return torch.empty(len(captions), 0, dtype=torch.int64)
        return self.tokenizer(captions).long().contiguous()  # cut columns would be copied to shared memory too


def _labels(samples: Sequence[TrainSample]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (classes int64, shares float32) of the samples, both [b, M]; M is the largest number of classes of a sample."""
    most = max(len(sample.labels) for sample in samples)
    labels, shares = torch.zeros(len(samples), most, dtype=torch.int64), torch.zeros(len(samples), most)
    for row, sample in enumerate(samples):
        labels[row, : len(sample.labels)] = torch.tensor(sample.labels, dtype=torch.int64)
        shares[row, : len(sample.labels)] = 1.0
    return labels, shares


_FOLDER = "/dev/shm"  # noqa: S108 (only its free space is asked for)
_LEAST = 2**20  # bytes; the workers' queues need some, and a batch of images rarely needs less


def require_room() -> None:
    """Raise RunError if shared memory is too small even for the queues of the data workers."""
    free, total = _room()
    if total and free < _LEAST:
        raise _too_little("the data workers need more")


def shared(batch: Batch) -> Batch | RunError:
    """In a data worker, move the batch's tensors to shared memory; return the batch, or a RunError if they do not fit.

    In the trainer's own process (`data.workers=0`) the batch is returned unchanged.
    """
    if get_worker_info() is None:
        return batch
    try:
        for name in TENSORS:
            getattr(batch, name).share_memory_()
    except (RuntimeError, OSError) as error:
        size = sum(getattr(batch, name).nbytes for name in TENSORS)
        return _too_little(f"a batch of {size_text(size)} does not fit: {error}")
    return batch


def _too_little(what: str) -> RunError:
    """Return an error that names shared memory and the ways to get more of it."""
    free, total = _room()
    return RunError(
        f"too little shared memory ({_FOLDER}: {size_text(free)} of {size_text(total)} are free), where data workers hand over "
        "their batches: give it more (docker run --shm-size=8g, or --ipc=host), lower data.workers or data.prefetch, or set "
        f"data.workers=0; {what}"
    )


def _room() -> tuple[int, int]:
    """Return (free, total) bytes of shared memory. The total is 0 if it is unknown or unlimited."""
    with contextlib.suppress(OSError):
        found = os.statvfs(_FOLDER)
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    return 0, 0
