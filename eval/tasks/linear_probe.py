"""A linear probe: scikit-learn's logistic regression on frozen features, which are the unit embeddings of images.

How hard it is regularised is decided at every length anew: of C the smallest that does best on a fifth of the training split,
which then joins the rest for the fit that is scored. The metrics are classification's, named as CLIP_benchmark names a probe's.
Needs no text tower.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
import torch
from flexiclip_eval.data.labels import resolve_labels
from flexiclip_eval.rows import TaskInfo
from flexiclip_eval.tasks.base import Context, Prepared, Result
from flexiclip_eval.tasks.classification import accuracies, class_hits, classification_chance, largest_class
from torch import Tensor

from flexiclip.distributed import block, gather_objects, rank
from flexiclip.errors import UserError

log = logging.getLogger("flexiclip.eval")

CS = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Inverse strengths of regularisation that are tried. Features of length 1 want larger ones than raw features do."""

ITERATIONS = 1000

PREFIX = "lp_"


def prepare_linear_probe(context: Context) -> Prepared:
    """Learn the classes from the training split. Raises UserError for a label that is no class, and for too few to learn from."""
    classes, _, labels = resolve_labels(context.task, [*context.records, *context.training])
    label, taught = labels[: len(context.records)], labels[len(context.records) :].numpy()
    where = f"data set {context.name}: the training split"
    if len(set(taught.tolist())) < 2:
        raise UserError(f"{where} has images of one class alone; a linear probe tells at least two apart")
    if not held_out(taught).any():
        raise UserError(f"{where} has {len(taught)} images, too few to hold a fifth of them out; name a larger one in train")
    chance = classification_chance(len(classes), PREFIX)
    info = TaskInfo(context.name, "linear_probe", chance, tuple(classes), largest_class(label))

    def measure(image_z: Tensor, training_z: Tensor) -> Result:
        scores = probe(_features(training_z), taught, _features(image_z), len(classes), context.name)
        return accuracies(class_hits(torch.from_numpy(scores), label, "chance"), label, classes, PREFIX)

    return Prepared(info, measure)


def held_out(label: np.ndarray) -> np.ndarray:
    """Which training images choose C, bool [M]: a fifth of them, spread over the classes, of which each keeps one.

    So each class is learned, and gives its share, whatever the order of the samples.
    """
    order = np.random.default_rng(0).permutation(len(label))
    order = order[np.argsort(label[order], kind="stable")]
    rest = order[1:][label[order][1:] == label[order][:-1]]  # all but the first of each class
    count = min(len(label) // 5, len(rest))
    held = np.zeros(len(label), dtype=bool)
    held[rest[np.arange(count) * len(rest) // max(count, 1)]] = True
    return held


def probe(training: np.ndarray, taught: np.ndarray, images: np.ndarray, classes: int, name: str) -> np.ndarray:
    """Scores float64 [N, classes], -inf for a class without training images. training [M, D], images [N, D]: float64 rows.

    taught: int [M], the class of each training image. The ranks share the values of C; the last fit is the first rank's, so that
    all have the same scores to the last bit.
    """
    held = held_out(taught)
    mine = [_fit(training[~held], taught[~held], CS[i]).score(training[held], taught[held]) for i in block(len(CS))]
    shares = [share for part in gather_objects(mine) for share in part]
    best = CS[int(np.argmax(shares))]  # of equals the first
    found = None
    if rank() == 0:
        model = _fit(training, taught, best)
        if model.n_iter_.max() >= ITERATIONS:
            log.warning("data set %s: the linear probe (C = %g) did not converge in %d iterations", name, best, ITERATIONS)
        scores = model.decision_function(images)
        scores = np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores  # of two classes it gives the second's alone
        found = np.full((len(images), classes), -np.inf)
        found[:, model.classes_] = scores
    shared = gather_objects(found)[0]
    assert shared is not None, "the first rank fits"
    return shared


def _fit(features: np.ndarray, label: np.ndarray, c: float) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said once, of the fit that counts
        return LogisticRegression(C=c, max_iter=ITERATIONS).fit(features, label)


def _features(z: Tensor) -> np.ndarray:
    """In float64, in which L-BFGS stops where the gradient says so and not where rounding does."""
    return z.double().cpu().numpy()
