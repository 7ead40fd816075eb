"""One row of results: the JSON object that CLIP_benchmark writes, and the lengths and costs at its top level."""

from __future__ import annotations

from dataclasses import dataclass

Side = int | list[int]
"""Pixels of a square's side, or [height, width]."""


@dataclass(frozen=True)
class Row:
    """Scores of one (data set, task, seqhw). A model with one fixed length that it does not name has null lengths."""

    dataset: str
    model: str
    pretrained: str
    task: str  # zeroshot_retrieval | zeroshot_classification | classification | image_caption_selection | linear_probe
    metrics: dict[str, float]  # in 0..1
    language: str
    n: int  # images scored; broken ones are not among them
    seqhw: int | None
    seq_len: int | None  # tokens: seqhw^2
    patch_size: Side | None  # pixels
    image_size: Side | None  # pixels
    gflops: float | None  # image tower, one image, a multiply-add counting 2
    images_per_s: float | None  # image tower over all ranks, without decoding and warm-up; null for a single image
    width: int | None = None  # columns of the embeddings that were compared, the first ones, with --widths; else all, and no key


@dataclass(frozen=True)
class TaskInfo:
    """What a task's rows mean: the scores of a model that knows nothing, and the size of the problem."""

    dataset: str
    task: str
    chance: dict[str, float]
    classes: tuple[str, ...] = ()
    largest_class: float | None = None  # share of the commonest class: acc1 of always naming it
    captions: int | None = None  # distinct texts
