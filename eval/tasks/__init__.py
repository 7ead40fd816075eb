"""The tasks that a model is scored on, one module per kind. Their metrics depend on embeddings alone."""

from __future__ import annotations

from collections.abc import Callable

from flexiclip_eval.tasks.base import Context, Prepared
from flexiclip_eval.tasks.choice import prepare_choice
from flexiclip_eval.tasks.classification import prepare_classification, prepare_multilabel
from flexiclip_eval.tasks.linear_probe import prepare_linear_probe
from flexiclip_eval.tasks.retrieval import prepare_retrieval

TASKS: dict[str, Callable[[Context], Prepared]] = {
    "retrieval": prepare_retrieval,
    "classification": prepare_classification,
    "multilabel": prepare_multilabel,
    "choice": prepare_choice,
    "linear_probe": prepare_linear_probe,
}
"""The `kind` in a suite -> the function that prepares a task of this kind."""

WITHOUT_TEXT = ("linear_probe",)
"""The kinds on which an image tower alone can be scored."""

WITH_A_HEAD = (*WITHOUT_TEXT, "classification")
"""The kinds on which a classifier can be scored."""
