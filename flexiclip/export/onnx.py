"""Encoders as ONNX files: plain transformer graphs with an open batch size and text length, optionally with int8 weights.

Quantisation is onnxruntime's dynamic quantisation of matrix products with weights. Three kinds of products stay float32:
products of activations (attention); the first layer, which for images sees raw pixels; and the last layer, after which no
averaging reduces the error. Weights have 7 bits, because x86 CPUs without VNNI (before 2019) add two products in 16 bits,
which would saturate with weights of 8 bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flexiclip.export.encoder_facts import KEY, EncoderFacts, facts_to_json
from flexiclip.export.program import input_name, trace
from flexiclip.libraries import quiet, require

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnxruntime import InferenceSession

AXES = ("batch", "sequence")
"""The names of the open axes of an encoder's input. Only a text encoder's input has the second one."""

OPSET = 20  # the first opset in which Gelu, in both its forms, is one operator
Encode = Callable[[Tensor], Tensor]
_PRODUCTS = ("MatMul", "Gemm")


def _require(*packages: str) -> None:
    for package in packages:
        require(package, "flexiclip[export]", "this export")


def write(encoder: nn.Module, path: Path, facts: EncoderFacts | None = None) -> None:
    """Write an ImageEncoder (`images` -> `embeddings`) or a TextEncoder (`tokens` -> `embeddings`) as one ONNX file.

    The file contains the weights and, in its metadata, the facts.
    """
    _require("onnx", "onnxscript", "onnxruntime")
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
        _strip(program.model)
        _name_axes(program.model)
        if facts is not None:
            program.model.metadata_props[KEY] = facts_to_json(facts)
        program.save(path, external_data=False)


def _strip(model: ir.Model) -> None:
    """Remove what the exporter notes of each node, such as a stack trace with the paths of this machine."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()


def _name_axes(model: ir.Model) -> None:
    """Name the open axes of a graph batch and sequence. The exporter numbers them (`s34`)."""
    (given,) = model.graph.inputs
    names = dict(zip(_open_axes(given), AXES, strict=False))
    found = [*model.graph.inputs, *(value for node in model.graph.all_nodes() for value in node.outputs)]
    for value in found:
        for axis, size in enumerate(value.shape or ()):
            if str(size) in names and value.shape is not None:
                value.shape[axis] = names[str(size)]


def _open_axes(value: ir.Value) -> list[str]:
    """Return the names of the axes of a value that have no fixed size."""
    return [str(size) for size in value.shape or () if not isinstance(size, int)]


def quantize(source: Path, target: Path, kept: Sequence[str] = ()) -> None:
    """Write `target`, which is `source` with the blocks' weights as int8, with one scale per output channel.

    The nodes named in `kept` stay float32.
    """
    _require("onnx", "onnxruntime")
    from onnx import load_model
    from onnxruntime.quantization import QuantType, quantize_dynamic

    products = [node.name for node in load_model(source).graph.node if node.op_type in _PRODUCTS]
    excluded = [products[0], products[-1], *kept]
    excluded += [f"{name}_MatMul" for name in excluded]  # the name that onnxruntime gives a Gemm before it looks for exclusions
    with quiet():
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=list(_PRODUCTS),
            per_channel=True,
            reduce_range=True,  # 7 bits, because 8 bits saturate on a CPU without VNNI
            weight_type=QuantType.QInt8,
            nodes_to_exclude=excluded,
        )


def narrowing_layers(source: Path) -> list[str]:
    """Return the names of the nodes whose weights have more inputs than outputs.

    These are the second layers of the MLPs, whose inputs have the widest range.
    """
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


def open_session(path: Path, threads: int | None = None) -> InferenceSession:
    """Return a session that runs the file on the CPU. The default of `threads` is torch's number.

    Errors are raised, so they are not logged as well. They are of onnxruntime's own types, which have no common base class.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def open_encoder(path: Path, threads: int | None = None) -> Encode:
    """Return a function that runs the file on the CPU and maps the input to the embeddings.

    The default of `threads` is torch's number of threads.
    """
    _require("onnxruntime")
    session = open_session(path, threads)
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def speed_ratio(first: Encode, second: Encode, x: Tensor, repeats: int = 5) -> float:
    """Return how many times faster `second` is than `first` on the input x.

    Each time is the best of `repeats` runs, because other processes can only add time. The two take turns.
    """
    best = [float("inf"), float("inf")]
    for turn in range(repeats + 1):
        for i, encode in enumerate((first, second)):
            start = time.perf_counter()
            encode(x)
            if turn:  # the first call is not counted, because it allocates
                best[i] = min(best[i], time.perf_counter() - start)
    return best[0] / best[1]
