"""Classification of images with many classes each: mean average precision, as CLIP_benchmark computes it.

A class ranks all images; its average precision is the mean, over its own images, of the precision at each one's rank. Images of
equal score are one step of the ranking, as in scikit-learn, so that a model that knows nothing scores the share of the class. A
class without an image counts as 0, as in CLIP_benchmark.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.labels import resolve_many
from ..embeddings.prompts import class_embeddings
from ..rows import TaskInfo
from .base import Context, Prepared, Result
from .ranking import first_twins


def prepare_multilabel(context: Context) -> Prepared:
    """Each class finds its images. Raises UserError for a label that is no class."""
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
    """Of each class, float64 [C]. scores: [N, C]; member: bool [N, C], which classes an image is of."""
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
