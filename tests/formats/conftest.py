"""The foreign models of these tests start from the same random weights in every run: a tolerance that held once holds again."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Each test draws its models' weights from the start of one stream."""
    torch.manual_seed(0)
