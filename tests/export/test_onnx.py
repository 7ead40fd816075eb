"""ONNX files as other programs see them: the graph, its metadata, int8 weights, and how they are run and timed."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from kit.exports import IMAGES, assert_refused, assert_same_embeddings, run_onnx, session, tokens_of
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from flexiclip.export import onnx as writer
from flexiclip.export.encoder_facts import EncoderFacts, Origin, facts_from_json
from flexiclip.export.encoders import ImageEncoder, TextEncoder
from flexiclip.model_folder import LoadedModel


@pytest.fixture(scope="module")
def facts(folders: dict[str, Path], opened: dict[str, LoadedModel]) -> EncoderFacts:
    return Origin.open(str(folders["clip"])).facts(ImageEncoder(opened["clip"].model, 4), None)


@pytest.fixture(scope="module")
def file(facts: EncoderFacts, opened: dict[str, LoadedModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP's image encoder at seqhw 4, of which several tests look."""
    path = tmp_path_factory.mktemp("onnx") / "image.onnx"
    writer.write(ImageEncoder(opened["clip"].model, 4), path, facts)
    return path


def test_write_is_one_file_with_named_ends_an_open_batch_and_the_facts(file: Path, facts: EncoderFacts) -> None:
    assert [path.name for path in file.parent.iterdir()] == ["image.onnx"], "no weights beside it"
    model = onnx.load(file)
    onnx.checker.check_model(model)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]
    (given,), (found,) = model.graph.input, model.graph.output
    assert (given.name, found.name) == ("images", "embeddings")
    batch, *rest = given.type.tensor_type.shape.dim
    assert batch.dim_param
    assert [dim.dim_value for dim in rest] == [3, 48, 48]
    assert found.type.tensor_type.shape.dim[1].dim_value == 24
    assert facts_from_json(session(file).get_modelmeta().custom_metadata_map["flexiclip"]) == facts
    for node in model.graph.node:
        assert not node.metadata_props
        assert not node.doc_string


@torch.no_grad()
def test_open_encoder_gives_what_onnxruntime_gives(file: Path, opened: dict[str, LoadedModel]) -> None:
    encode = writer.open_encoder(file, threads=1)
    for batch in (1, 3):
        found = encode(IMAGES[:batch])
        assert found.dtype == torch.float32
        assert_same_embeddings(found, opened["clip"].model.encode_image(IMAGES[:batch], 4, normalize=True))
        assert_same_embeddings(found, run_onnx(file, IMAGES[:batch]))


@torch.no_grad()
def test_write_without_facts_has_no_metadata(opened: dict[str, LoadedModel], tmp_path: Path) -> None:
    """SigLIP's text encoder, whose length is fixed."""
    loaded = opened["siglip"]
    writer.write(TextEncoder(loaded.model), tmp_path / "text.onnx")
    assert session(tmp_path / "text.onnx").get_modelmeta().custom_metadata_map == {}
    (given,) = session(tmp_path / "text.onnx").get_inputs()
    assert (given.name, given.type, given.shape[1]) == ("tokens", "tensor(int64)", 12)
    tokens = tokens_of(loaded)
    assert_same_embeddings(writer.open_encoder(tmp_path / "text.onnx")(tokens), loaded.model.encode_text(tokens, normalize=True))


def test_open_session_has_the_threads_and_raises_what_onnxruntime_raises(file: Path, tmp_path: Path) -> None:
    assert writer.open_session(file, threads=2).get_session_options().intra_op_num_threads == 2
    assert writer.open_session(file).get_session_options().intra_op_num_threads == torch.get_num_threads()
    assert writer.open_session(file).get_providers() == ["CPUExecutionProvider"]
    (tmp_path / "bad.onnx").write_bytes(file.read_bytes()[:1000])
    with pytest.raises(Exception, match=r"(?i)bad\.onnx"):
        writer.open_session(tmp_path / "bad.onnx")


def products(path: Path) -> list[onnx.NodeProto]:
    """The matrix products with stored float32 matrices, in the order in which they run."""
    graph = onnx.load(path).graph
    weights = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    return [node for node in graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in weights]


def int8_matrices(path: Path) -> list[np.ndarray]:
    stored = [tensor for tensor in onnx.load(path).graph.initializer if tensor.data_type == TensorProto.INT8]
    return [numpy_helper.to_array(tensor) for tensor in stored if len(tensor.dims) == 2]


@torch.no_grad()
def test_quantize_makes_the_blocks_int8_and_keeps_the_first_and_the_last_layer(
    file: Path, opened: dict[str, LoadedModel], tmp_path: Path
) -> None:
    """The patch kernel, two blocks of qkv, proj, fc1 and fc2, and the projection, which is a Gemm."""
    layers, quantized = [node.name for node in products(file)], tmp_path / "int8.onnx"
    assert len(layers) == 9
    kept = layers[3]
    writer.quantize(file, quantized, [kept])
    assert [node.name.removesuffix("_MatMul") for node in products(quantized)] == [kept, layers[-1]]
    shapes = [(32, 96), (32, 32), (32, 128), (32, 96), (32, 32), (32, 128), (128, 32)]
    assert sorted(array.shape for array in int8_matrices(quantized)) == sorted(shapes)
    assert max(np.abs(array.astype(int)).max() for array in int8_matrices(quantized)) <= 64, "7 bits, for x86 without VNNI"
    kernels = [tensor for tensor in onnx.load(quantized).graph.initializer if list(tensor.dims) == [32, 3, 12, 12]]
    assert [tensor.data_type for tensor in kernels] == [TensorProto.FLOAT]
    assert quantized.stat().st_size < file.stat().st_size
    expected = opened["clip"].model.encode_image(IMAGES, 4, normalize=True)
    assert 0.98 < float(F.cosine_similarity(run_onnx(quantized, IMAGES), expected).min()) < 1 - 1e-7
    assert facts_from_json(session(quantized).get_modelmeta().custom_metadata_map["flexiclip"]).role == "image"


def test_narrowing_layers_of_an_encoder_are_the_second_layers_of_its_mlps(file: Path) -> None:
    """And its projection, from 32 to 24 numbers."""
    names = [node.name for node in products(file)]
    assert writer.narrowing_layers(file) == [names[3], names[7], names[8]]


def test_narrowing_layers_by_hand(tmp_path: Path) -> None:
    """Gemm with transB stores [outputs, inputs], everything else [inputs, outputs]; products of activations have no weights."""
    shapes = {"narrow": (4, 2), "wide": (2, 4), "square": (2, 2), "turned": (2, 4), "turned_wide": (4, 2)}
    nodes = [
        helper.make_node("MatMul", ["x4", "narrow"], ["a"], name="narrow"),
        helper.make_node("MatMul", ["a", "wide"], ["b"], name="wide"),
        helper.make_node("Gemm", ["b", "turned"], ["c"], name="turned", transB=1),
        helper.make_node("Gemm", ["c", "turned_wide"], ["d"], name="turned_wide", transB=1),
        helper.make_node("Gemm", ["d", "narrow"], ["e"], name="gemm", transB=0),
        helper.make_node("MatMul", ["e", "square"], ["f"], name="square"),
        helper.make_node("Transpose", ["f"], ["g"], name="transpose"),
        helper.make_node("MatMul", ["f", "g"], ["y"], name="activations"),
    ]
    weights = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in shapes.items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, size]) for name, size in (("x4", 4), ("y", 3))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "g.onnx")
    assert writer.narrowing_layers(tmp_path / "g.onnx") == ["narrow", "turned", "gemm"]


def test_speed_ratio_takes_turns_and_the_best_of_each() -> None:
    """The first encoder waits for 40 ms, the second for 10 ms; a first call and one disturbed call do not count."""
    calls: list[str] = []

    def encoder(name: str, seconds: float) -> writer.Encode:
        def encode(x: Tensor) -> Tensor:
            calls.append(name)
            time.sleep(0.3 if calls.count(name) in (1, 3) else seconds)
            return x

        return encode

    ratio = writer.speed_ratio(encoder("slow", 0.04), encoder("fast", 0.01), torch.zeros(1), repeats=3)
    assert calls == ["slow", "fast"] * 4
    assert 1.5 < ratio < 6


def test_a_missing_package_is_named(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # Python's own way to make an import fail
    assert_refused(["text", str(folders["ours"])], "pip install 'flexiclip[export]'", tmp_path / "t.onnx", capsys)
