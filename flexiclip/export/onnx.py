"""Encoders as ONNX files: a plain transformer graph, batch (and text length) left open, optionally with int8 weights.

Quantisation is onnxruntime's dynamic one, for the matrix products with weights alone: products of activations (attention), the
first layer, which for images sees raw pixels, and the last, whose error nothing averages out, stay float32. Weights have 7
bits, so that x86 CPUs without VNNI (before 2019), which add two such products in 16 bits, do not saturate.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from flexiclip.errors import UserError
from flexiclip.export.encoder_facts import KEY, EncoderFacts, facts_to_json
from flexiclip.export.program import input_name, quiet, trace

OPSET = 20  # the first with Gelu as one operator, in both its forms
Encode = Callable[[Tensor], Tensor]
_PRODUCTS = ("MatMul", "Gemm")


def require(*packages: str, extra: str = "export") -> None:
    """Raise UserError with the line that installs them when one of the packages is missing."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            raise UserError(f"this export needs the package {package}: run `pip install 'flexiclip[{extra}]'`") from None


def write(encoder: nn.Module, path: Path, facts: EncoderFacts | None = None) -> None:
    """Write an ImageEncoder (`images` -> `embeddings`) or a TextEncoder (`tokens` -> `embeddings`), weights and facts inside."""
    require("onnx", "onnxscript", "onnxruntime")
    traced = trace(encoder)
    with quiet():
        program = torch.onnx.export(
            traced,
            dynamo=True,
            input_names=[input_name(encoder)],
            output_names=["embeddings"],
            opset_version=OPSET,
            verbose=False,
        )
        assert program is not None
        if facts is not None:
            program.model.metadata_props[KEY] = facts_to_json(facts)
        program.save(path, external_data=False)


def quantize(source: Path, target: Path, kept: Sequence[str] = ()) -> None:
    """Write `target`: `source` with the blocks' weights as int8, one scale an output channel; the nodes `kept` stay float32."""
    require("onnx", "onnxruntime")
    from onnx import load_model
    from onnxruntime.quantization import QuantType, quantize_dynamic

    products = [node.name for node in load_model(source).graph.node if node.op_type in _PRODUCTS]
    with quiet():
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=list(_PRODUCTS),
            per_channel=True,
            reduce_range=True,  # 7 bits: a CPU without VNNI adds two products of 8 bits in 16, and saturates
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[products[0], products[-1], *kept],
        )


def narrowing_layers(source: Path) -> list[str]:
    """The nodes whose weights have more inputs than outputs: the MLPs' second layers, whose inputs have the widest range."""
    from onnx import load_model

    graph = load_model(source).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type in _PRODUCTS and len(shapes.get(node.input[1], ())) == 2:
            inputs, outputs = shapes[node.input[1]]
            transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            if (outputs > inputs) if transposed else (inputs > outputs):
                found.append(node.name)
    return found


def open_encoder(path: Path, threads: int | None = None) -> Encode:
    """A function from the input to the embeddings that runs the file on the CPU; threads: default torch's number."""
    require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def speed_ratio(first: Encode, second: Encode, x: Tensor, repeats: int = 5) -> float:
    """How many times faster `second` is than `first`: best of `repeats`, taken in turns, for other processes only add time."""
    best = [float("inf"), float("inf")]
    for turn in range(repeats + 1):
        for i, encode in enumerate((first, second)):
            start = time.perf_counter()
            encode(x)
            if turn:  # the first call allocates
                best[i] = min(best[i], time.perf_counter() - start)
    return best[0] / best[1]
