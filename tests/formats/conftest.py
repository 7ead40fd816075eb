"""The foreign models of these tests start from the same random weights in every run: a tolerance that held once holds again.

The models that the writers' tests export are those of the tests of exports.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kit.export_models import folders, make, opened, vocabulary

__all__ = ["folders", "make", "opened", "vocabulary"]

UNLIKE = {"mean": [0.11, 0.22, 0.33], "std": [0.44, 0.55, 0.66], "resize": "squash", "interpolation": "bilinear"}


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Each test draws its models' weights from the start of one stream."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def biased(make: Callable[..., Path]) -> Path:
    """CLIP's architecture with a patch bias, which none of the formats has, and images prepared as nobody's default does."""
    return make("clip", image={"patch_bias": True}, preprocess=UNLIKE)
