"""The golden arrays of tests/golden (outputs of big_vision's own code), as torch tensors."""

from __future__ import annotations

from pathlib import Path

import torch

from flexiclip.formats.big_vision_reader import read_npz

FOLDER = Path(__file__).parents[1] / "golden"
PAPER_PATCHES = (8, 10, 12, 15, 16, 20, 24, 30, 40, 48)  # at 240 px: the ten sizes of the paper


def golden(name: str) -> dict[str, torch.Tensor]:
    """The arrays of tests/golden/{name}.npz."""
    return {key: torch.from_numpy(array) for key, array in read_npz(FOLDER / f"{name}.npz").items()}


def oihw(kernel: torch.Tensor) -> torch.Tensor:
    """JAX's HWIO kernel [H, W, C, D] -> torch's [D, C, H, W]."""
    return kernel.permute(3, 2, 0, 1)


def largest_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """max |found - expected|; the shapes must be equal, for broadcasting hides mistakes."""
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).abs().max())
