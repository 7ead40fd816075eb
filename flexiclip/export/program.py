"""Encoders as torch.export programs: the graph and the weights in one file that torch alone runs, batch (and text length) open.

    encode = torch.export.load("image.pt2").module()
    embeddings = encode(images)

`trace` is also the way to ONNX (onnx.py). It fails, and does not silently fix an axis, when a graph would hold for one size only.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from flexiclip.export.encoder_facts import KEY, EncoderFacts, facts_to_json
from flexiclip.export.encoders import ImageEncoder, TextEncoder


def trace(encoder: nn.Module) -> ExportedProgram:
    """The program of an ImageEncoder or a TextEncoder."""
    example, axes = _example(encoder)
    with quiet(), torch.no_grad():
        return torch.export.export(encoder, (example,), dynamic_shapes=(axes,), strict=False)


def save(encoder: nn.Module, path: Path, facts: EncoderFacts | None = None) -> None:
    """Trace an encoder and write its program; the facts are the extra file KEY of torch.export.load."""
    program, content = trace(encoder), io.BytesIO()
    with quiet():  # into memory: torch's own writer of files ends the whole process on a full disk
        torch.export.save(program, content, extra_files={KEY: facts_to_json(facts)} if facts is not None else None)
    path.write_bytes(content.getbuffer())


def open_encoder(path: Path) -> Callable[[Tensor], Tensor]:
    """A function from the input to the embeddings that runs a saved program."""
    with quiet():
        module: Callable[[Tensor], Tensor] = torch.export.load(path).module()
    return module


def input_name(encoder: nn.Module) -> str:
    """What the encoder's input is called in its graph."""
    return "images" if isinstance(encoder, ImageEncoder) else "tokens"


def _example(encoder: nn.Module) -> tuple[Tensor, dict[int, Any]]:
    """An input to trace with, and its open axes. Sizes 0 and 1 would be taken for constants, so the batch is 2."""
    if isinstance(encoder, ImageEncoder):
        return torch.zeros(2, 3, *encoder.tower.image_size, dtype=torch.uint8 if encoder.pixels else torch.float32), {
            0: Dim("batch")
        }
    assert isinstance(encoder, TextEncoder)
    longest = encoder.context_length
    length = {1: Dim("length", max=longest)} if encoder.dynamic_length and longest > 2 else {}
    return torch.ones(2, longest, dtype=torch.int64), {0: Dim("batch"), **length}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars and advice of other libraries, meant for their own authors; exceptions pass."""
    disabled, heard = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
