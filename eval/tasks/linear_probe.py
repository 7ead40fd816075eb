"""The linear probe: scikit-learn's logistic regression on frozen features, which are the unit embeddings of images.

The strength of regularisation is chosen separately at every length: the smallest C that does best on a held-out fifth of the
training split. The fit that is scored then uses the whole training split. The metrics are those of classification, with
CLIP_benchmark's names for a linear probe. No text tower is needed.
"""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from flexiclip_eval.data.labels import resolve_labels
from flexiclip_eval.rows import TaskInfo
from flexiclip_eval.tasks.base import Context, Prepared, Result
from flexiclip_eval.tasks.classification import accuracies, class_hits, classification_chance, largest_class, named_classes
from torch import Tensor

from flexiclip.distributed import block, gather_objects, rank
from flexiclip.errors import UserError

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

log = logging.getLogger("flexiclip.eval")

CS = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""The inverse strengths of regularisation that are tried. Features of length 1 need larger values than raw features."""

ITERATIONS = 1000

PREFIX = "lp_"


def prepare_linear_probe(context: Context) -> Prepared:
    """Prepare a probe that learns the classes from the training split.

    Raises UserError for a label that is not a class, and for a training split of one class or of too few images.
    """
    classes, _, labels = resolve_labels(context.task, [*context.records, *context.training])
    label, taught = labels[: len(context.records)], labels[len(context.records) :].numpy()
    where = f"data set {context.name}: the training split"
    if len(set(taught.tolist())) < 2:
        raise UserError(f"{where} has images of only one class; a linear probe needs at least two")
    if not held_out(taught).any():
        raise UserError(f"{where} has {len(taught)} images, too few to hold a fifth of them out; name a larger one in train")
    chance = classification_chance(len(classes), PREFIX)
    info = TaskInfo(context.name, "linear_probe", chance, tuple(classes), largest_class(label))

    def measure(image_z: Tensor, training_z: Tensor) -> Result:
        scores = torch.from_numpy(probe(_features(training_z), taught, _features(image_z), len(classes), context.name))
        return accuracies(class_hits(scores, label, "chance"), label, classes, PREFIX, named_classes(scores, label))

    return Prepared(info, measure)


def held_out(label: np.ndarray) -> np.ndarray:
    """Return which training images are held out to choose C, bool [M]: a fifth of them, spread over the classes.

    Each class keeps at least one image to learn from and contributes its share, whatever the order of the samples is.
    """
    order = np.random.default_rng(0).permutation(len(label))
    order = order[np.argsort(label[order], kind="stable")]
    rest = order[1:][label[order][1:] == label[order][:-1]]  # all images except the first of each class
    count = min(len(label) // 5, len(rest))
    held = np.zeros(len(label), dtype=bool)
    held[rest[np.arange(count) * len(rest) // max(count, 1)]] = True
    return held


def probe(training: np.ndarray, taught: np.ndarray, images: np.ndarray, classes: int, name: str) -> np.ndarray:
    """Choose C, fit the probe, and return scores float64 [N, classes]; a class without training images has -inf.

    training: float64 rows [M, D]. taught: int [M], the class of each training image. images: float64 rows [N, D]. name: the name
    of the data set, for messages. The ranks share the values of C. The last fit runs on the first rank, so that all ranks get
    exactly the same scores. All ranks must call this.
    """
    held = held_out(taught)
    mine = [_fit(training[~held], taught[~held], CS[i]).score(training[held], taught[held]) for i in block(len(CS))]
    shares = [share for part in gather_objects(mine) for share in part]
    best = CS[int(np.argmax(shares))]  # the first, and so the smallest, among equals
    found = None
    if rank() == 0:
        model = _fit(training, taught, best)
        if model.n_iter_.max() >= ITERATIONS:
            log.warning("data set %s: the linear probe (C = %g) did not converge in %d iterations", name, best, ITERATIONS)
        scores = model.decision_function(images)
        scores = np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores  # two classes have one score, the second's
        found = np.full((len(images), classes), -np.inf)
        found[:, model.classes_] = scores
    shared = gather_objects(found)[0]
    assert shared is not None, "the first rank fits"
    return shared


def _fit(features: np.ndarray, label: np.ndarray, c: float) -> LogisticRegression:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the caller warns once, about the final fit
        return LogisticRegression(C=c, max_iter=ITERATIONS).fit(features, label)


def _features(z: Tensor) -> np.ndarray:
    """Return rows as float64, so that L-BFGS stops when the gradient is small enough and not because of rounding."""
    return z.double().cpu().numpy()
