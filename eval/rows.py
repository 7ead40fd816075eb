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
    """The name of the data set, followed by that of the task if it has one."""
    model: str
    """NAME of open_clip:NAME/PRETRAINED, else the name of the architecture."""
    pretrained: str
    """PRETRAINED of open_clip:NAME/PRETRAINED, else the source of the model."""
    task: str
    """zeroshot_retrieval, zeroshot_classification, classification, image_caption_selection or linear_probe."""
    metrics: dict[str, float]
    """Shares in 0..1, and median ranks from 1, with CLIP_benchmark's names for the metrics that it has."""
    language: str
    """The language of the captions and prompts."""
    n: int
    """The number of images that were scored, without those that could not be read."""
    seqhw: int | None
    """The grid side of the length."""
    seq_len: int | None
    """The number of tokens, seqhw^2."""
    patch_size: Side | None
    """Pixels; None if it is unknown or does not apply to the model."""
    image_size: Side | None
    """Pixels; None if it is unknown."""
    gflops: float | None
    """GFLOPs of the image tower for one image, where a multiply-add counts 2; None if they are unknown."""
    images_per_s: float | None
    """Speed of the image tower over all ranks, without decoding and warm-up; None if there are too few images to measure it."""
    width: int | None = None
    """How many columns of the embeddings `--widths` compared; None (and no key in the JSON): all."""


@dataclass(frozen=True)
class TaskInfo:
    """Facts about a task that are needed to judge its rows: the chance level of each metric, and the size of the problem."""

    dataset: str
    task: str
    chance: dict[str, float]  # the metrics of a model that knows nothing
    classes: tuple[str, ...] = ()
    largest_class: float | None = None  # share of the most frequent class, which is the acc1 of always naming that class
    captions: int | None = None  # number of captions; equal texts count once if the task merges them
