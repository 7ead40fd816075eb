"""A row of results.json: the JSON object that CLIP_benchmark writes, with the length and its cost added at the top level."""

from __future__ import annotations

from dataclasses import dataclass

Side = int | list[int]
"""A size in pixels: the side of a square, or [height, width]."""


@dataclass(frozen=True)
class Row:
    """The scores of one model on one task of a data set at one length.

    `seqhw` and `seq_len` are None for a model that has one fixed length and does not state it.
    """

    dataset: str
    model: str
    pretrained: str
    task: str  # zeroshot_retrieval | zeroshot_classification | classification | image_caption_selection | linear_probe
    metrics: dict[str, float]  # shares in 0..1; median ranks from 1
    language: str
    n: int  # images scored, without those that could not be read
    seqhw: int | None
    seq_len: int | None  # tokens: seqhw^2
    patch_size: Side | None  # pixels
    image_size: Side | None  # pixels
    gflops: float | None  # of the image tower for one image; a multiply-add counts 2
    images_per_s: float | None  # of the image tower over all ranks, without decoding and warm-up; None for a single image
    width: int | None = None  # columns of the embeddings that --widths compared; None: all of them, and no key in the JSON


@dataclass(frozen=True)
class TaskInfo:
    """What is needed to judge the rows of a task: the chance level of each metric, and the size of the problem."""

    dataset: str
    task: str
    chance: dict[str, float]  # the metrics of a model that knows nothing
    classes: tuple[str, ...] = ()
    largest_class: float | None = None  # share of the most frequent class, which is the acc1 of always naming that class
    captions: int | None = None  # number of queries by caption; equal texts count once if the task merges them
