"""Encoders as torch.export programs: one file with the graph and the weights, which needs only torch to run.

    encode = torch.export.load("image.pt2").module()
    embeddings = encode(images)

The batch size and the text length are open. `trace` is also the first step of an ONNX export (onnx.py). If a graph were
valid for one size only, `trace` fails instead of silently fixing that axis.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from flexiclip.export.encoder_facts import KEY, EncoderFacts, facts_to_json
from flexiclip.export.encoders import ImageEncoder, TextEncoder
from flexiclip.libraries import quiet


def trace(encoder: nn.Module) -> ExportedProgram:
    """Trace an ImageEncoder or a TextEncoder to a program, without stack traces, which have the paths of this machine."""
    example, axes = _example(encoder)
    with quiet(), torch.no_grad():
        program = torch.export.export(encoder, (example,), dynamic_shapes=(axes,), strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def save(encoder: nn.Module, path: Path, facts: EncoderFacts | None = None) -> None:
    """Trace an encoder and write its program. The facts are the extra file KEY of torch.export.load."""
    program, content = trace(encoder), io.BytesIO()
    with quiet():  # write to memory, because on a full disk torch's own file writer ends the process
        torch.export.save(program, content, extra_files={KEY: facts_to_json(facts)} if facts is not None else None)
    path.write_bytes(content.getbuffer())


def open_encoder(path: Path) -> Callable[[Tensor], Tensor]:
    """Return a function that runs a saved program and maps the input to the embeddings."""
    with quiet():
        module: Callable[[Tensor], Tensor] = torch.export.load(path).module()
    return module


def input_name(encoder: nn.Module) -> str:
    """Return the name of the encoder's input in its graph."""
    return "images" if isinstance(encoder, ImageEncoder) else "tokens"


def _example(encoder: nn.Module) -> tuple[Tensor, dict[int, Dim]]:
    """Return an input to trace with, and its open axes.

    The batch size is 2, because torch.export takes the sizes 0 and 1 for constants.
    """
    if isinstance(encoder, ImageEncoder):
        return torch.zeros(2, 3, *encoder.tower.image_size, dtype=torch.uint8 if encoder.pixels else torch.float32), {
            0: Dim("batch")
        }
    assert isinstance(encoder, TextEncoder)
    longest = encoder.context_length
    length = {1: Dim("length", max=longest)} if encoder.dynamic_length and longest > 2 else {}
    return torch.ones(2, longest, dtype=torch.int64), {0: Dim("batch"), **length}
