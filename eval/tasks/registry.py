"""The tasks by the `kind` that a suite gives them."""

from __future__ import annotations

from collections.abc import Callable

from .base import Context, Prepared
from .classification import prepare_classification
from .retrieval import prepare_retrieval

TASKS: dict[str, Callable[[Context], Prepared]] = {
    "retrieval": prepare_retrieval,
    "classification": prepare_classification,
}

WITHOUT_TEXT = ("linear_probe",)
"""The kinds that an image tower alone can be scored on."""
