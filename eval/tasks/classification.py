"""Classification, zero-shot or with the head of a classifier, of images that have one class or several.

If each image has one class, the metrics are acc1, acc5 and mean_per_class_recall, with CLIP_benchmark's names and definitions.
mean_per_class_recall is the mean over the classes that have at least one image, as in scikit-learn's balanced accuracy. acc5 is
left out for fewer than 5 classes, where it means nothing.

If an image may have several classes (multilabel), the metric is mean_average_precision, as CLIP_benchmark computes it. A class
ranks all images, and its average precision is the mean, over its own images, of the precision at the rank of each. Images of
equal score are one step of the ranking, as in scikit-learn, so that a model that knows nothing scores the share of the class. A
class without an image counts as 0, as in CLIP_benchmark.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from flexiclip_eval.data.labels import resolve_labels, resolve_many
from flexiclip_eval.embeddings.embed import class_embeddings
from flexiclip_eval.rows import Details, TaskInfo, binomial_error
from flexiclip_eval.tasks.base import Context, Prepared, Result
from flexiclip_eval.tasks.mistakes import describe_mistakes
from flexiclip_eval.tasks.search import Ties, counts, first_twins, hit_probability, mean_rank, over_blocks
from torch import Tensor

from flexiclip.errors import UserError


def prepare_classification(context: Context) -> Prepared:
    """Prepare the classification of images with one class each, from prompts, or from the head of a classifier.

    Raises UserError for a label that is not a class, and for a class that the head does not have.
    """
    classes, prompts, label = resolve_labels(context.task, context.records)
    zero_shot = context.head is None
    class_z = class_embeddings(context.embed_texts, prompts) if zero_shot else head_rows(context, classes)
    chance = classification_chance(len(classes))
    kind = "zeroshot_classification" if zero_shot else "classification"
    info = TaskInfo(context.name, kind, chance, tuple(classes), largest_class(label))
    return Prepared(info, lambda image_z, _: classify(image_z, class_z.to(image_z.device), label, classes, context.task.ties))


def head_rows(context: Context, classes: list[str]) -> Tensor:
    """Return the one-hot row that selects the logit of each class from those of the head: [len(classes), len(head)] float32."""
    assert context.head is not None, "asked of a classifier"
    number = {name: i for i, name in enumerate(context.head)}
    unknown = [name for name in classes if name not in number]
    if unknown:
        raise UserError(
            f"data set {context.name}: its class {unknown[0]!r} is not among the {len(number)} that the model's head knows "
            "(model.classes); use the same names in the suite"
        )
    return torch.eye(len(number))[[number[name] for name in classes]]


def classify(image_z: Tensor, class_z: Tensor, label: Tensor, classes: list[str], ties: Ties = "chance") -> Result:
    """Return the accuracies in 0..1, and the recall of each class, from unit rows. All ranks must call this.

    image_z: [N, D]. class_z: [C, D]. label: int64 [N] in 0..C-1. ties: how equal scores count (TaskConfig.ties).
    """
    twins = first_twins(class_z) if ties == "chance" else None
    weights = class_z.T.contiguous()  # with the factor below, CLIP_benchmark's own product: another order differs in the last bit
    label = label.to(image_z.device)

    def search(start: int, stop: int) -> Tensor:
        scores = (100.0 * image_z[start:stop]) @ weights
        scores, mine = scores if twins is None else scores[:, twins], label[start:stop]
        return torch.cat([class_hits(scores, mine, ties), named_classes(scores, mine)], dim=1)

    rows = over_blocks(search, len(image_z), len(class_z), 5, image_z).cpu()
    return accuracies(rows[:, :3], label.cpu(), classes, named=rows[:, 3:])


def named_classes(scores: Tensor, label: Tensor) -> Tensor:
    """Return the class with the highest score and the rank of the image's own class, float64 [N, 2].

    scores: [N, C]; label: int64 [N] in 0..C-1. Of classes with equal scores the first is named; the rank is the mean over every
    order of them.
    """
    above, tied, positive = counts(scores, torch.arange(len(scores), device=scores.device), label)
    return torch.stack([scores.argmax(1).double(), mean_rank(above, tied, positive)], dim=1)


def class_hits(scores: Tensor, label: Tensor, ties: Ties) -> Tensor:
    """Return for each image whether the first class, one of the first five, and the predicted class are right: float64 [N, 3].

    scores: [N, C]; label: int64 [N] in 0..C-1. A value between 0 and 1 is the probability under a random order of ties. With ties
    `topk`, the first class is that of torch.topk and the predicted class that of argmax, as in CLIP_benchmark.
    """
    number = torch.arange(len(scores), device=scores.device)
    counted = counts(scores, number, label)
    first, five = (hit_probability(*counted, k) for k in (1, 5))
    named = first.clone()
    unsure = (counted[1] > 1).nonzero()[:, 0]
    if ties == "topk" and len(unsure):
        tied, mine = scores[unsure], label[unsure, None]
        order = tied.topk(5 if scores.shape[1] >= 5 else 1).indices == mine
        first[unsure], five[unsure] = order[:, 0].double(), order.any(1).double()
        named[unsure] = (tied.argmax(1) == mine[:, 0]).double()
    return torch.stack([first, five, named], dim=1)


def accuracies(hits: Tensor, label: Tensor, classes: list[str], prefix: str = "", named: Tensor | None = None) -> Result:
    """Return the metrics from the hits [N, 3] of class_hits, and the recall of each class that has images.

    label: int64 [N] in 0..C-1. prefix: put before the names of the metrics. named: what named_classes returns, for the mistakes
    in the details.
    """
    count = torch.bincount(label, minlength=len(classes)).numpy()
    total = np.bincount(label.numpy(), weights=hits[:, 2].numpy(), minlength=len(classes))
    present = count > 0
    recall = total[present] / count[present]
    first, five, _ = (hits.sum(0) / len(hits)).tolist()
    metrics = {"acc1": first} | ({"acc5": five} if len(classes) >= 5 else {}) | {"mean_per_class_recall": float(np.mean(recall))}
    errors = {name: binomial_error(value, len(hits)) for name, value in metrics.items() if name != "mean_per_class_recall"}
    errors["mean_per_class_recall"] = mean_recall_error(recall, count[present])
    names = itertools.compress(classes, present)
    per_class: dict[str, float] = dict(zip(names, recall.tolist(), strict=True))
    shares, uncertain = ({prefix + name: value for name, value in each.items()} for each in (metrics, errors))
    details: Details = {"per_class": per_class}
    if named is not None:
        details |= describe_mistakes(named[:, 0].long(), label, named[:, 1], len(classes))
    return Result(shares, details, uncertain, hits[:, 0])


def mean_recall_error(recall: np.ndarray, count: np.ndarray) -> float:
    """Return the standard error of the mean of the recalls [C] of classes with `count` [C] images each.

    The classes are fixed, and the images of each are drawn: this is what a bootstrap inside of the classes converges to.
    """
    return float(np.sqrt((recall * (1 - recall) / count).clip(0).sum()) / len(recall))


def classification_chance(classes: int, prefix: str = "") -> dict[str, float]:
    """Return the metrics of a uniform guess among `classes` classes."""
    chance = {"acc1": 1 / classes, "mean_per_class_recall": 1 / classes} | ({"acc5": 5 / classes} if classes >= 5 else {})
    return {prefix + name: value for name, value in chance.items()}


def largest_class(label: Tensor) -> float:
    """Return the share of the most frequent class: the acc1 of always naming it, which on uneven data sets is far above 1/C."""
    return (torch.bincount(label).max() / len(label)).item()


def prepare_multilabel(context: Context) -> Prepared:
    """Prepare the classification of images with several classes, zero-shot. Raises UserError for a label that is not a class."""
    classes, prompts, member = resolve_many(context.task, context.records)
    class_z = class_embeddings(context.embed_texts, prompts)
    chance = {"mean_average_precision": member.double().mean(0).mean().item()}
    info = TaskInfo(context.name, "zeroshot_classification", chance, tuple(classes))

    def measure(image_z: Tensor, _: Tensor) -> Result:
        scores = (100.0 * image_z) @ class_z.T.contiguous()
        twins = first_twins(image_z)
        precision = average_precision(scores if twins is None else scores[twins], member.to(scores.device))
        per_class = dict(zip(classes, precision.tolist(), strict=True))
        return Result({"mean_average_precision": precision.mean().item()}, {"per_class": per_class})

    return Prepared(info, measure)


def average_precision(scores: Tensor, member: Tensor) -> Tensor:
    """Return the average precision of each class, float64 [C]. scores: [N, C]; member: bool [N, C], the classes of each image."""
    return torch.stack([_of_class(scores[:, c], member[:, c]) for c in range(scores.shape[1])])


def _of_class(scores: Tensor, member: Tensor) -> Tensor:
    order = scores.argsort(descending=True)
    ranked, right = scores[order], member[order].double()
    last = torch.ones_like(right, dtype=torch.bool)
    last[:-1] = ranked[1:] != ranked[:-1]  # the end of each run of equal scores
    found = right.cumsum(0)[last]
    seen = torch.arange(1, len(right) + 1, device=scores.device)[last]
    gained = torch.diff(found, prepend=found.new_zeros(1))
    return (gained * found / seen).sum() / right.sum().clamp(min=1)
