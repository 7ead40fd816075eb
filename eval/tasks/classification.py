"""Zero-shot classification: acc1, acc5 and mean_per_class_recall, named and meant as CLIP_benchmark has them.

mean_per_class_recall averages over the classes that own at least one image, as scikit-learn's balanced accuracy does. acc5 is
left out when there are fewer than 5 classes, where it says nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.labels import resolve_labels
from ..embeddings.prompts import class_embeddings
from ..report.table import TaskInfo
from .base import Context, Prepared, Result
from .ranking import TIE, hit_probability


def prepare_classification(context: Context) -> Prepared:
    """An image finds its class among prompts. Raises UserError for a label that is no class."""
    classes, prompts, label = resolve_labels(context.task, context.records)
    class_z = class_embeddings(context.embed_texts, prompts)
    chance = classification_chance(len(classes))
    info = TaskInfo(context.name, "zeroshot_classification", chance, tuple(classes), largest_class(label))
    return Prepared(info, lambda image_z: Result(classification_metrics(image_z, class_z, label)))


def classification_metrics(image_z: Tensor, class_z: Tensor, label: Tensor) -> dict[str, float]:
    """Accuracies in 0..1 from unit rows: image_z [N, D], class_z [C, D]; label int64 [N] in 0..C-1."""
    scores = image_z @ class_z.T
    label = label.to(scores.device)
    mine = scores.gather(1, label[:, None])
    above = (scores > mine + TIE).sum(1)
    tied = (scores >= mine - TIE).sum(1) - above
    one = torch.ones_like(tied)
    first = hit_probability(above, tied, one, 1)
    metrics = {"acc1": first.mean().item()}
    if len(class_z) >= 5:
        metrics["acc5"] = hit_probability(above, tied, one, 5).mean().item()
    return metrics | {"mean_per_class_recall": _per_class(first, label, len(class_z)).mean().item()}


def classification_chance(classes: int) -> dict[str, float]:
    """The same numbers for a uniform guess among `classes` classes."""
    chance = {"acc1": 1 / classes, "mean_per_class_recall": 1 / classes}
    return chance | ({"acc5": 5 / classes} if classes >= 5 else {})


def largest_class(label: Tensor) -> float:
    """Share of the most frequent class: the acc1 of a model that always names it, which on uneven sets is far above 1/C."""
    return (torch.bincount(label).max() / len(label)).item()


def _per_class(hit: Tensor, label: Tensor, classes: int) -> Tensor:
    """Mean hit of each class that occurs, [classes present] float64."""
    total = torch.zeros(classes, dtype=hit.dtype, device=hit.device).scatter_add(0, label, hit)
    count = torch.bincount(label, minlength=classes)
    return total[count > 0] / count[count > 0]
