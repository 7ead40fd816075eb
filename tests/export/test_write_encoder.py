"""Encoders that are written, as ONNX and as torch programs, run as another program runs them: the same embeddings as the model's,
also of an exit.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from kit.exports import assert_refused, assert_same_embeddings, pixels, run_onnx, session
from PIL import Image

import flexiclip
from flexiclip.__main__ import main
from flexiclip.config import Config, ImageTowerConfig, ModelConfig, PatchConfig, PatchStage, parse_duration
from flexiclip.model_folder import LoadedModel, build_model, load_model, save_model


def axes(value: onnx.ValueInfoProto) -> list[str | int]:
    """The size of each axis, or its name where it is open."""
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


@torch.no_grad()
def test_onnx_image_encoders_below_and_above_the_base_grid(
    folders: dict[str, Path], opened: dict[str, LoadedModel], tmp_path: Path
) -> None:
    """CLIP's architecture, because it has a class token. The batch size is open, and nothing is resized in the graph."""
    assert main(["export", "image", str(folders["clip"]), "--seqhw", "2,6", "--output", str(tmp_path / "i.onnx")]) == 0
    files = [tmp_path / f"i-{seqhw}{suffix}" for seqhw in (2, 6) for suffix in (".md", ".onnx")]
    assert sorted(tmp_path.iterdir()) == sorted(files), "there is one file and one card per length, and nothing else"
    for seqhw in (2, 6):
        path = tmp_path / f"i-{seqhw}.onnx"
        graph = onnx.load(path).graph
        assert [axes(value) for value in (*graph.input, *graph.output)] == [["batch", 3, 48, 48], ["batch", 24]]
        operators = {node.op_type for node in graph.node}
        assert "MatMul" in operators
        assert operators.isdisjoint({"Resize", "Upsample", "Conv", "If", "Loop"})
        for batch in (1, 3):
            images = pixels(batch) / 127.5 - 1
            assert_same_embeddings(run_onnx(path, images), opened["clip"].model.encode_image(images, seqhw, normalize=True))


@pytest.mark.parametrize("name", ["ours", "siglip"])
@torch.no_grad()
def test_normalize_inside_takes_raw_pixels(
    name: str, folders: dict[str, Path], opened: dict[str, LoadedModel], tmp_path: Path
) -> None:
    path = tmp_path / "deep" / "image.onnx"
    assert main(["export", "image", str(folders[name]), "--normalize-inside", "--seqhw", "3", "--output", str(path)]) == 0
    assert session(path).get_inputs()[0].type == "tensor(uint8)"
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 50, 3), dtype=np.uint8))
    loaded = opened[name]
    expected = loaded.model.encode_image(loaded.transform(photo)[None], 3, normalize=True)
    assert_same_embeddings(run_onnx(path, loaded.transform.pixels(photo)[None]), expected)


@pytest.mark.parametrize("name", ["ours", "clip", "siglip"])
@torch.no_grad()
def test_onnx_text_encoders(name: str, folders: dict[str, Path], opened: dict[str, LoadedModel], tmp_path: Path) -> None:
    path, loaded = tmp_path / "text.onnx", opened[name]
    assert main(["export", "text", str(folders[name]), "--output", str(path)]) == 0
    tokens = loaded.tokenizer(["rain", "two dogs running along a beach at sunset", "an old map"])
    for length in (12, 7, 2, 1) if loaded.model.text_tower.trims else (12,):
        for rows in (slice(3), slice(1)):
            expected = loaded.model.encode_text(tokens[rows, :length], normalize=True)
            assert_same_embeddings(run_onnx(path, tokens[rows, :length]), expected)
    graph = onnx.load(path).graph
    length = "sequence" if loaded.model.text_tower.trims else 12
    assert [axes(value) for value in (*graph.input, *graph.output)] == [
        ["batch", length],
        ["batch", loaded.config.model.embed_dim],
    ]
    assert {name for value in graph.value_info for name in axes(value) if isinstance(name, str)} <= {"batch", "sequence", ""}
    for file, content in loaded.tokenizer.files.items():
        assert (tmp_path / "text_tokenizer" / file).read_bytes() == content


def test_a_folder_gets_the_files_of_the_encoders(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a slash at its end or without one, there or not; `flexiclip eval FOLDER` takes it."""
    there, fresh = tmp_path / "there", tmp_path / "v1"
    there.mkdir()
    model = str(folders["clip"])
    assert main(["export", "image", model, "--seqhw", "3,6", "--output", f"{fresh}/"]) == 0
    assert main(["export", "text", model, "--output", str(fresh)]) == 0
    assert sorted(path.name for path in fresh.iterdir()) == [
        *("image-3.md", "image-3.onnx", "image-6.md", "image-6.onnx", "text.md", "text.onnx", "text_tokenizer")
    ]
    assert main(["export", "image", model, "--format", "torch", "--output", str(there)]) == 0
    assert (there / "image.pt2").is_file()
    capsys.readouterr()
    assert main(["export", "image", model, "--output", str(tmp_path / "image.bin")]) == 2
    wanted = f"flexiclip: --output {tmp_path / 'image.bin'}: a file of --format onnx ends in .onnx; name one, or a folder\n"
    assert capsys.readouterr().err == wanted


@torch.no_grad()
def test_int8_encoders_are_smaller_and_agree(
    make: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make("ours", image={"width": 64, "depth": 4}, text={"width": 64})
    shards = tmp_path / "photos"
    shards.mkdir()
    for i in range(3):
        Image.effect_mandelbrot((90, 60), (-2, -1.2, 1, 1.2 + i), 50).convert("RGB").save(shards / f"{i}.png")
    path, whole = tmp_path / "int8.onnx", tmp_path / "whole.onnx"
    options = ["--seqhw", "6", "--images", str(shards)]
    assert main(["export", "image", str(folder), *options, "--quantize", "int8", "--output", str(path)]) == 0
    said = capsys.readouterr().out
    assert "3 real images" in said
    assert "times as fast as float32" in said
    assert main(["export", "image", str(folder), *options, "--output", str(whole)]) == 0
    assert json.loads(session(path).get_modelmeta().custom_metadata_map["flexiclip"])["quantize"] == "int8"
    assert path.stat().st_size < 0.6 * whole.stat().st_size
    images = torch.rand(6, 3, 48, 48) * 2 - 1
    expected = load_model(folder).model.encode_image(images, 6, normalize=True)
    assert 0.99 < float(F.cosine_similarity(run_onnx(path, images), expected).min()) < 1 - 1e-7


@pytest.mark.parametrize("options", [["--format", "onnx"], ["--quantize", "int8"], ["--format", "torch"]], ids=str)
def test_an_exported_encoder_has_no_path_of_this_machine(options: list[str], folders: dict[str, Path], tmp_path: Path) -> None:
    """The exporters of torch note a stack trace of each node."""
    for what in ("image", "text"):
        file = tmp_path / f"{what}{'.pt2' if 'torch' in options else '.onnx'}"
        assert main(["export", what, str(folders["ours"]), *options, "--output", str(file)]) == 0
        contents = [file.read_bytes()]
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                contents += [archive.read(name) for name in archive.namelist()]
        for path in (Path(flexiclip.__file__).parents[1], Path(torch.__file__).parents[1], folders["ours"], tmp_path):
            assert not any(os.fsencode(path) in content for content in contents)


def test_a_quantised_encoder_that_is_not_the_model_is_not_kept(
    make: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A channel a thousand times larger, and its weights that much smaller: the same function, and poison for int8."""
    loaded = load_model(make("ours"))
    with torch.no_grad():
        for block in loaded.model.image_tower.blocks:
            for norm, layer in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1)):
                norm.weight[0] *= 1000
                norm.bias[0] *= 1000
                layer.weight[:, 0] /= 1000
    save_model(tmp_path / "model", loaded)
    command = ["export", "image", str(tmp_path / "model"), "--quantize", "int8", "--output", str(tmp_path / "out" / "i.onnx")]
    assert main(command) == 1
    said = capsys.readouterr().out
    assert "is not the model, and was not kept: 8 random images: largest difference" in said
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seqhw", "5"], "valid seqhw: [1, 2, 3, 4, 6, 8"),
        (["--seqhw", "6,7"], "seqhw=7 does not divide"),
        (["--format", "tflite"], "one of onnx, torch"),
        (["--quantize", "int4"], "only int8"),
        (["--quantize", "int8", "--format", "torch"], "give --format onnx"),
        (["--images", "nowhere.tar"], "nowhere.tar"),
    ],
)
def test_export_image_names_mistakes_in_one_line(
    options: list[str], message: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(["image", str(folders["siglip"]), *options], message, tmp_path / "out", capsys)


def test_export_text_of_an_image_tower_alone_is_refused(
    make: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(["text", str(make("ours", text=None))], "there is no text half to export", tmp_path / "text.onnx", capsys)


def test_a_text_encoder_in_the_place_of_another_has_its_own_tokenizer(
    folders: dict[str, Path], make: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "text.onnx"
    (tmp_path / "text_tokenizer").mkdir()
    (tmp_path / "text_tokenizer" / "of another kind.json").write_text("{}")
    assert main(["export", "text", str(folders["ours"]), "--output", str(path)]) == 0
    written = {file.name for file in (tmp_path / "text_tokenizer").iterdir()}
    assert written == set(load_model(folders["ours"]).tokenizer.files)
    assert not list(tmp_path.glob(".*"))


EXIT_PATCH = PatchConfig(seqhw=(4, 2, 6), weights=(1.0, 1.0, 0.0), stages=(PatchStage(parse_duration("50%"), (3,)),))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = ImageTowerConfig(
        width=32, depth=3, heads=2, image_size=24, base_patch_size=8, base_grid=3, exits=(1, 2), exit_heads="separate"
    )
    config = Config(model=ModelConfig(image=image, text=None, embed_dim=8), patch=EXIT_PATCH)
    loaded = build_model(config)
    with torch.no_grad():
        for p in loaded.model.parameters():  # the heads must differ from one another
            p.add_(0.3 * torch.randn_like(p))
    folder = tmp_path_factory.mktemp("exits") / "model"
    save_model(folder, loaded)
    (folder / "results.json").write_text(
        '[{"dataset": "d", "task": "t", "seqhw": 4, "pretrained": "exits", "metrics": {"acc1": 0.5}}]'
    )
    return folder


@torch.no_grad()
def test_an_exit_is_loaded_and_exported_as_what_it_is(source: Path, tmp_path: Path) -> None:
    images = torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    whole, left = load_model(source), load_model(f"{source}+exit2")
    expected = left.model.encode_image(images, 4, normalize=True)
    assert (len(left.model.image_tower.blocks), left.config.model.image.depth, left.config.model.image.exits) == (2, 2, ())
    assert not torch.allclose(expected, whole.model.encode_image(images, 4, normalize=True), atol=0.1)

    output = tmp_path / "image.onnx"
    command = ["export", "image", f"{source}+exit2", "--format", "onnx", "--seqhw", "4", "--output", str(output)]
    assert main(command) == 0
    assert_same_embeddings(run_onnx(output, images), expected)
    card = output.with_suffix(".md").read_text()
    assert "left after block: 2" in card
    assert "trained at seqhw: 2, 3, 4" in card
    facts = json.loads(session(output).get_modelmeta().custom_metadata_map["flexiclip"])
    assert facts["image"]["trained_seqhw"] == [2, 3, 4], "those of the stages too, and not the 6 that is never drawn"
    assert "0.5000" not in card, "the metrics beside the folder are those of the whole depth"


def test_a_saved_exit_is_a_model_of_its_own(source: Path, tmp_path: Path) -> None:
    left = load_model(f"{source}+exit1")
    save_model(tmp_path / "short", left)
    again = load_model(tmp_path / "short")
    images = torch.randn(2, 3, 24, 24)
    assert torch.equal(again.model.encode_image(images, 2), left.model.encode_image(images, 2))
    assert replace(again.config.model.image, init=None) == left.config.model.image


def test_a_block_without_an_exit_is_refused(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "image", f"{source}+exit5", "--output", "image.onnx"]) == 2
    assert "cannot be left after block 5 of 3: its exits are 1, 2" in capsys.readouterr().err


def test_a_saved_exit_has_metrics_of_its_own(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "short"
    save_model(folder, load_model(f"{source}+exit1"))
    (folder / "results.json").write_text(
        '[{"dataset": "d", "task": "t", "seqhw": 4, "pretrained": "short", "metrics": {"acc1": 0.25}}]'
    )
    output = tmp_path / "image.onnx"
    assert main(["export", "image", str(folder), "--format", "onnx", "--seqhw", "4", "--output", str(output)]) == 0
    assert "0.2500" in output.with_suffix(".md").read_text()
