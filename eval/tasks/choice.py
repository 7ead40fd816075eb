"""Choosing between captions: a right and a wrong caption of one image (SugarCrepe), or two images with two captions (Winoground).

The first caption of an image is its own, and further captions are wrong. Images that share the task's `label` form an instance
of at most two images, and the own caption of each is wrong for the other. The metrics are named as in CLIP_benchmark's
image_caption_selection, and are Winoground's text, image and group scores:

- text_acc: every image of the instance prefers its own caption.
- image_acc: every caption prefers its own image. It is left out if all instances have one image, because there is no choice.
- acc: both.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from flexiclip_eval.data.images import Record
from flexiclip_eval.data.shards import Label
from flexiclip_eval.rows import TaskInfo, binomial_error
from flexiclip_eval.tasks.base import Context, Prepared, Result
from torch import Tensor

from flexiclip.errors import UserError

log = logging.getLogger(__name__)

Instance = tuple[list[int], list[int]]
"""The rows of the images of an instance, and the rows of its captions: first those of the images, in order, then wrong ones."""


def prepare_choice(context: Context) -> Prepared:
    """Prepare the task: find the instances and embed their captions. Raises UserError for an instance without a choice."""
    name = context.task.name or "choice"
    instances, captions = find_instances(context.records, context.task.label, name, context.unread)
    text_z = context.embed_texts(captions)
    info = TaskInfo(context.name, "image_caption_selection", choice_chance(instances), captions=len(captions))

    def measure(image_z: Tensor, _: Tensor) -> Result:
        hits = choice_hits(image_z, text_z, instances)
        metrics = _means(hits, instances)
        errors = {name: binomial_error(value, len(instances)) for name, value in metrics.items()}
        return Result(metrics, errors=errors, hits=hits[:, 2])

    return Prepared(info, measure)


def find_instances(records: Sequence[Record], label: str | None, name: str, unread: int = 0) -> tuple[list[Instance], list[str]]:
    """Return (instances, captions); the instances refer to the captions, of which each text occurs once.

    label: the key of the label that joins images into instances; None: each image is one. name: of the task, for messages.
    unread: the number of images that could not be read. If there are any, the instances that lost an image are left out, with a
    warning. Raises UserError for an image without a caption or label, and for an instance without a choice.
    """
    by_label: dict[Label, list[int]] = {}
    for number, record in enumerate(records):
        if not record.captions:
            raise UserError(f"task {name}: {record.sample} has no caption; name other members in captions")
        shared = number if label is None else record.labels[label]
        if shared is None:
            raise UserError(f"task {name}: {record.sample} has no {label}, by which images join into an instance")
        by_label.setdefault(shared, []).append(number)
    groups = list(by_label.values())
    if unread and max(map(len, groups)) == 2:  # one image alone would be an easier instance
        pairs = [images for images in groups if len(images) > 1]
        log.warning("task %s: %d instances have lost an image and are left out", name, len(groups) - len(pairs))
        groups = pairs
    place: dict[str, int] = {}
    instances = []
    for images in groups:
        own = [records[i].captions[0] for i in images]
        texts = [*own, *dict.fromkeys(text for i in images for text in records[i].captions[1:] if text not in own)]
        where = f"task {name}: the instance of {records[images[0]].sample}"
        if len(images) > 2 or (len(images) == 2 and len(texts) != 2):
            raise UserError(
                f"{where} has {len(images)} images and {len(texts)} captions; score 1 image, or 2 with a caption each"
            )
        if len(set(texts)) < 2:
            raise UserError(f"{where} has one caption; a choice needs a wrong one too")
        instances.append((images, [place.setdefault(text, len(place)) for text in texts]))
    return instances, list(place)


def choice_metrics(image_z: Tensor, text_z: Tensor, instances: Sequence[Instance]) -> dict[str, float]:
    """Return text_acc, image_acc and acc in 0..1, from unit rows of images [N, D] and of captions [T, D].

    Items of equal score are chosen equally often. image_acc is left out if no instance has two images.
    """
    return _means(choice_hits(image_z, text_z, instances), instances)


def choice_hits(image_z: Tensor, text_z: Tensor, instances: Sequence[Instance]) -> Tensor:
    """Return text_acc, image_acc and acc of each instance, float64 [I, 3] on the CPU. Arguments: as for choice_metrics."""
    hits = []
    for images, texts in instances:
        scores = image_z[images].double() @ text_z[texts].double().T  # in float64, so that equal embeddings have equal scores
        text = _chosen(scores).prod()
        image = _chosen(scores.T[: len(images)]).prod()
        hits.append(torch.stack([text, image, text * image]).cpu())
    return torch.stack(hits)


def _means(hits: Tensor, instances: Sequence[Instance]) -> dict[str, float]:
    total = torch.zeros(3, dtype=torch.float64)
    for each in hits:  # one by one: torch's own sum over many rows has another order of additions
        total += each
    text_acc, image_acc, acc = (total / len(instances)).tolist()
    pairs = any(len(images) == 2 for images, _ in instances)
    return {"text_acc": text_acc} | ({"image_acc": image_acc} if pairs else {}) | {"acc": acc}


def choice_chance(instances: Sequence[Instance]) -> dict[str, float]:
    """Return the metrics that random scores have.

    For two images and two captions, acc is 1/6: of 4 random scores in a square, the two on the diagonal are the two largest once
    in 6 times.
    """
    count = len(instances)
    text = sum((1 / len(texts)) ** len(images) for images, texts in instances) / count
    image = sum((1 / len(images)) ** len(images) for images, _ in instances) / count
    both = sum(1 / len(texts) if len(images) == 1 else 1 / 6 for images, texts in instances) / count
    pairs = any(len(images) == 2 for images, _ in instances)
    return {"text_acc": text} | ({"image_acc": image} if pairs else {}) | {"acc": both}


def _chosen(scores: Tensor) -> Tensor:
    """Return the probability that row i chooses column i, [R] float64. Scores that differ by rounding alone count as equal."""
    best = scores.max(1).values - 1e-12
    tied = scores >= best[:, None]
    return tied.diagonal().double() / tied.sum(1)
