"""What the tests of exports share: inputs, the command, onnxruntime as another program uses it, and comparisons."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from flexiclip.__main__ import main
from flexiclip.model_folder import LoadedModel

IMAGES = torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(0))
PHOTO = Image.fromarray(np.random.default_rng(1).integers(0, 256, (80, 64, 3), dtype=np.uint8))


def pixels(count: int) -> Tensor:
    """Random uint8 images [count, 3, 48, 48]."""
    return torch.randint(0, 256, (count, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))


def tokens_of(loaded: LoadedModel) -> Tensor:
    """Three captions as the model's tokens [3, L]."""
    return loaded.tokenizer(["rain", "two dogs running along a beach at sunset", "a flag with a blue cross"])


def export_model(folder: Path, fmt: str, output: Path, *options: str) -> int:
    """`flexiclip export model` in this process, and its exit code."""
    return main(["export", "model", str(folder), "--format", fmt, "--output", str(output), *options])


def assert_refused(command: list[str], reason: str, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`flexiclip export` gives the reason in one line, and leaves nothing behind in the folder of its output."""
    assert main(["export", *command, "--output", str(output)]) == 2
    said = capsys.readouterr().err
    assert reason in said, said
    assert said.count("\n") == 1, said
    assert list(output.parent.iterdir()) == []


def assert_model_refused(folder: Path, fmt: str, reason: str, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`flexiclip export model` refuses to write the model in a format."""
    assert_refused(["model", str(folder), "--format", fmt], reason, output, capsys)


def session(path: Path) -> onnxruntime.InferenceSession:
    """An ONNX file as onnxruntime opens it."""
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run_onnx(path: Path, x: Tensor) -> Tensor:
    """The output of an ONNX file with one input."""
    opened = session(path)
    return torch.from_numpy(opened.run(None, {opened.get_inputs()[0].name: x.numpy()})[0])


def assert_same_features(found: Tensor, expected: Tensor) -> None:
    """Features before normalisation, relative to their size."""
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < 1e-5 * max(1.0, float(expected.abs().max()))


def assert_same_embeddings(found: Tensor, expected: Tensor) -> None:
    """Unit embeddings, by component and by cosine."""
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < 1e-4
    assert float(F.cosine_similarity(found.double(), expected.double()).min()) > 0.99999
