"""The tasks by the `kind` that a suite gives them."""

from __future__ import annotations

from collections.abc import Callable

from .base import Context, Prepared
from .choice import prepare_choice
from .classification import prepare_classification
from .linear_probe import prepare_linear_probe
from .multilabel import prepare_multilabel
from .retrieval import prepare_retrieval

TASKS: dict[str, Callable[[Context], Prepared]] = {
    "retrieval": prepare_retrieval,
    "classification": prepare_classification,
    "multilabel": prepare_multilabel,
    "choice": prepare_choice,
    "linear_probe": prepare_linear_probe,
}

WITHOUT_TEXT = ("linear_probe",)
"""The kinds that an image tower alone can be scored on."""

WITH_A_HEAD = (*WITHOUT_TEXT, "classification")
"""Those of a classifier."""
