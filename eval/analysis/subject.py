"""The input of an analysis (Subject) and its result (Finding).

A Subject is a model in the towers of flexiclip, its lengths, the data sets of a suite, and a sample of their images. A Finding is
a sentence, numbers for analysis.json, and a table and pictures for report.html.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from flexiclip_eval.data.images import ImageBlock, Record, Transform
from flexiclip_eval.data.labels import resolve_labels
from flexiclip_eval.embeddings.embed import Encoding, to_device
from flexiclip_eval.models.protocol import EvalModel, choose_lengths, geometry
from flexiclip_eval.suites.dataset import DatasetConfig
from torch import Tensor

from flexiclip.errors import UserError
from flexiclip.models.clip import FlexiCLIP
from flexiclip.models.flexivit import FlexiViT

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class AnalysisOptions:
    """Options of `flexiclip analyze`. images: size of the sample. maps: images with maps. batch_size: also CKA's minibatch."""

    seqhw: Sequence[int] | None = None
    only: Sequence[str] | None = None
    cue_conflict: Path | None = None
    images: int = 256
    maps: int = 6
    batch_size: int = 64
    workers: int = 2
    device: str = "cpu"


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
    numbers: dict[str, object]  # plain data, finite
    table: Table
    figures: dict[str, tuple[Figure, str]]  # {name of the file without its ending: (picture, caption)}


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
    options: AnalysisOptions

    @property
    def encoding(self) -> Encoding:
        """The model with all that encodes images and texts."""
        return Encoding(self.loaded, self.lengths, self.options.batch_size, torch.device(self.options.device))

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
        device = torch.device(self.options.device)
        return [to_device(self.loaded, part, device) for part in self.sample.images[:count].split(size)]


def plain(rows: Tensor | Sequence[Tensor], digits: int = 6) -> list[list[float | None]]:
    """Return a matrix [n, m], or n rows [m], as lists for JSON, rounded to `digits` decimals; NaN becomes None."""
    return [[None if math.isnan(value) else round(value, digits) for value in row.tolist()] for row in rows]


def subject_lengths(loaded: EvalModel, source: str, seqhw: Sequence[int] | None) -> tuple[int, ...]:
    """Return the lengths to compare. Raises UserError for a model that does not run in our towers, or that has one length."""
    if not isinstance(loaded.model, FlexiCLIP):
        raise UserError(f"{source}: the analyses look inside towers of ours; write {source}+pi, which runs its weights in them")
    lengths = tuple(length for length in choose_lengths(loaded, seqhw) if length is not None)
    if len(lengths) < 2:
        raise UserError(
            f"{source}: the analyses compare lengths, but there is only seqhw={lengths[0]}; name more with --seqhw, or flex the "
            "patches of a fixed model: MODEL+pi"
        )
    return lengths


def draw_sample(
    datasets: Sequence[DatasetConfig], transform: Transform, count: int, *, workers: int = 2, seed: int = 0
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
    kept, texts = zip(*(found[place] for place in chosen if place in found), strict=True)
    return Sample(torch.stack(kept), list(texts), bad)


def _text(config: DatasetConfig, record: Record) -> str | None:
    """Return the first caption of an image, else the first prompt of its class, else None."""
    if record.captions:
        return record.captions[0]
    for task in config.tasks:
        if task.kind == "classification":
            _, prompts, label = resolve_labels(task, [record])
            return prompts[int(label[0])][0]
    return None
