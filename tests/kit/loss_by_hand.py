"""Every loss of an objective a second time, in numpy and float64, from the papers' formulas. Nothing of flexiclip is used."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def unit(z: Array) -> Array:
    return z / np.sqrt((z * z).sum(1, keepdims=True))


def log_softmax(logits: Array) -> Array:
    """Along the last axis; -inf is a logit that is not there."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def log_sigmoid(x: Array) -> Array:
    return -np.logaddexp(0.0, -x)


def contrastive(zimg: Array, ztxt: Array, log_scale: float, bias: float | None, ids: Array | None) -> float:
    """CLIP's loss without a bias, SigLIP's with one. ids: a caption that stands twice is not its twin's negative."""
    count = len(zimg)
    logits = np.exp(log_scale) * zimg @ ztxt.T
    twins = np.zeros((count, count), bool) if ids is None else (ids[:, None] == ids[None]) & ~np.eye(count, dtype=bool)
    if bias is None:
        logits = np.where(twins, -np.inf, logits)
        by_image, by_text = np.diag(log_softmax(logits)), np.diag(log_softmax(logits.T))
        return float(-(by_image.mean() + by_text.mean()) / 2)
    signs = 2 * np.eye(count) - 1
    pairs = log_sigmoid(signs * (logits + bias))
    return float(-pairs[~twins].sum() / count)


def objective(
    images: Sequence[Array], ztxt: Array, log_scale: float, bias: float | None, ids: Array | None, widths: Sequence[int]
) -> float:
    """Of every exit and of the end, each at every width and at the whole one; all of them count alike."""
    losses = []
    for zimg in images:
        for width in sorted({*widths, ztxt.shape[1]}):
            losses.append(contrastive(unit(zimg[:, :width]), unit(ztxt[:, :width]), log_scale, bias, ids))
    return float(np.mean(losses))


def cross_entropy(kind: str, logits: Array, targets: Array) -> float:
    """softmax: one distribution over the classes. sigmoid: a decision for each class, summed over them."""
    if kind == "softmax":
        return float(-(targets * log_softmax(logits)).sum(1).mean())
    return float(-(targets * log_sigmoid(logits) + (1 - targets) * log_sigmoid(-logits)).sum(1).mean())


def kl(student: Array, teacher: Array, temperature: float) -> Array:
    """T^2 KL(teacher || student) of each row of logits."""
    ours, theirs = log_softmax(student / temperature), log_softmax(teacher / temperature)
    return temperature**2 * (np.exp(theirs) * (theirs - ours)).sum(-1)


def pair_distillation(
    student: tuple[Array, Array],
    teacher: tuple[Array, Array],
    log_scale: float,
    teacher_log_scale: float,
    weights: tuple[float, float],
    temperature: float,
) -> float:
    """weights: of the divergence of the similarities, both ways, and of 1 - cosine, of both halves."""
    total = 0.0
    if weights[0]:
        ours, theirs = np.exp(log_scale) * student[0] @ student[1].T, np.exp(teacher_log_scale) * teacher[0] @ teacher[1].T
        both = (kl(ours, theirs, temperature).mean() + kl(ours.T, theirs.T, temperature).mean()) / 2
        total += weights[0] * both
    if weights[1]:
        distances = [1 - (unit(z) * unit(t)).sum(1).mean() for z, t in zip(student, teacher, strict=True)]
        total += weights[1] * float(np.mean(distances))
    return float(total)
