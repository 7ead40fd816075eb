"""The input of an analysis (Subject) and its result (Finding).

A Subject is a model in the towers of flexiclip, its lengths, the data sets of a suite, and a sample of their images. A Finding is
a sentence, numbers for analysis.json, and a table and pictures for report.html.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from flexiclip_eval.data.images import ImageBlock, Record
from flexiclip_eval.data.labels import resolve_labels
from flexiclip_eval.embeddings.embed import to_device
from flexiclip_eval.models.protocol import EvalModel, choose_lengths, geometry
from flexiclip_eval.suites.dataset import DatasetConfig
from torch import Tensor

from flexiclip.errors import UserError
from flexiclip.models.clip import FlexiCLIP
from flexiclip.models.flexivit import FlexiViT

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """Cells as texts; the first column names the row."""

    headings: Sequence[str]
    lines: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Finding:
    """The result of one analysis of one model."""

    title: str
    method: str  # how it is measured, with the paper
    sentence: str  # the result in words
    numbers: dict[str, Any]  # plain data, finite
    table: Table
    figures: dict[str, Figure]  # by the name of the file without its ending
    captions: dict[str, str]  # for the figures, by the same names


@dataclass(frozen=True)
class Bias:
    """The answers of a model at one length. Shares are of the images; `bias` is a share of the answers that are either cue."""

    images: int
    shape: float
    texture: float
    bias: float | None  # None if no answer is either cue
    nearer: float  # images nearer to the words of the shape than to those of the texture, whichever class is nearest
    by_shape: dict[str, float | None]  # the bias for the images of each shape


@dataclass(frozen=True)
class Sample:
    """Images of the data sets, drawn with a seed. texts: a caption of each image, else a prompt of its class, else None."""

    images: Tensor  # uint8 [n, 3, H, W], after the model's transform
    texts: list[str | None]
    bad: list[dict[str, str]]  # dataset, shard, key, reason


@dataclass(frozen=True)
class Subject:
    """The model and its data."""

    loaded: EvalModel
    lengths: tuple[int, ...]  # at least two, ascending
    datasets: tuple[DatasetConfig, ...]
    sample: Sample
    device: torch.device
    batch_size: int
    workers: int
    maps: int  # images whose maps are drawn
    cue_conflict: Path | None = None

    @property
    def model(self) -> FlexiCLIP:
        """Both towers, in evaluation mode."""
        model: FlexiCLIP = self.loaded.model
        return model

    @property
    def tower(self) -> FlexiViT:
        """The image tower."""
        return self.model.image_tower

    def gflops(self, length: int) -> float:
        """Return the GFLOPs of one image at a length."""
        gflops = geometry(self.loaded, length).gflops
        assert gflops is not None, "a model of ours knows its cost"
        return gflops

    def batches(self, size: int, count: int | None = None) -> list[Tensor]:
        """Return the first `count` images (default: all) in batches, normalised, on the device: float32 [<= size, 3, H, W]."""
        return [to_device(self.loaded, part, self.device) for part in self.sample.images[:count].split(size)]


def subject_lengths(loaded: EvalModel, source: str, seqhw: Sequence[int] | None) -> tuple[int, ...]:
    """Return the lengths to compare. Raises UserError for a model that does not run in our towers, or that has one length."""
    if not isinstance(loaded.model, FlexiCLIP):
        raise UserError(f"{source}: the analyses look inside towers of ours; write {source}+pi, which runs its weights in them")
    lengths = tuple(length for length in choose_lengths(loaded, seqhw) if length is not None)
    if len(lengths) < 2:
        raise UserError(
            f"{source}: the analyses compare lengths and there is but seqhw={lengths[0]}; name more with --seqhw, or flex the "
            "patches of a fixed model: MODEL+pi"
        )
    return lengths


def draw_sample(
    datasets: Sequence[DatasetConfig], transform: Callable[[Any], Tensor], count: int, *, workers: int = 2, seed: int = 0
) -> Sample:
    """Draw `count` images from all data sets together, in an order that mixes them.

    There are fewer images if the data sets have no more, or if some cannot be read. The transform has a method `pixels`, like
    those of our model folders. Raises UserError if no image can be read.
    """
    blocks = [ImageBlock(config, transform, workers=workers, cache_bytes=0) for config in datasets]
    places = [(number, i) for number, block in enumerate(blocks) for i in range(block.total)]
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    chosen = [places[i] for i in order]
    found: dict[tuple[int, int], tuple[Tensor, str | None]] = {}
    for number, block in enumerate(blocks):
        images, records = block.pick([i for whose, i in chosen if whose == number])
        for image, record in zip(images, records, strict=True):
            found[number, record.number] = image, _text(datasets[number], record)
    bad = [entry for block in blocks for entry in block.bad_samples()]
    if not found:
        raise UserError(f"none of the {len(chosen)} images drawn can be read; first: {bad[0]}")
    kept = [found[place] for place in chosen if place in found]
    return Sample(torch.stack([image for image, _ in kept]), [text for _, text in kept], bad)


def _text(config: DatasetConfig, record: Record) -> str | None:
    """Return the first caption of an image, else the first prompt of its class, else None."""
    if record.captions:
        return record.captions[0]
    for task in config.tasks:
        if task.kind == "classification":
            _, prompts, label = resolve_labels(task, [record])
            return prompts[int(label[0])][0]
    return None
