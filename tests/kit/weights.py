"""What the tests of the readers share: models that differ from their initial weights, and the way through the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from flexiclip.__main__ import main
from flexiclip.data.tokenizers import train_sentencepiece
from flexiclip.model_folder import LoadedModel, load_model

CAPTIONS = [f"a {colour} {thing}" for colour in ("red", "blue", "green") for thing in ("fox", "owl", "apple", "boat", "house")]
M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def perturbed(model: M, scale: float = 0.05) -> M:
    """The model in eval mode with every parameter off its initial value: zero biases and unit scales would hide a mix-up."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def imported(source: str | Path, format: str, folder: Path, *options: str | Path) -> LoadedModel:
    """`flexiclip import` in this process, and what it wrote."""
    assert main(["import", str(source), "--format", format, "--output", str(folder), *map(str, options)]) == 0
    return load_model(folder)


def refused(capsys: pytest.CaptureFixture[str], source: str | Path, format: str, folder: Path, *options: str | Path) -> str:
    """The one line with which `flexiclip import` refuses a source; it leaves nothing behind."""
    capsys.readouterr()
    assert main(["import", str(source), "--format", format, "--output", str(folder), *map(str, options)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("flexiclip: ")
    assert err.count("\n") == 1, err
    assert not folder.exists()
    return err


def images(size: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3))


def vocabulary(path: Path) -> Path:
    """A small sentencepiece model."""
    return train_sentencepiece(CAPTIONS, path, 60, lowercase=True)
