"""`flexiclip import` from the command line: big_vision's golden outputs, image towers without a text half, and damaged files."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import save_file

from flexiclip.__main__ import main
from flexiclip.config import Config, from_dict, load
from flexiclip.data.tokenizers import train_sentencepiece
from flexiclip.errors import UserError
from flexiclip.model_folder import LoadedModel, build_model, load_model

GOLDEN = Path(__file__).parents[1] / "golden"
PATCHES = {"gap": (8, 12, 15, 16, 20, 24, 30, 40, 48), "map": (16, 48)}


def arrays(name: str) -> dict[str, NDArray[Any]]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def run_import(source: Path | str, format: str, output: Path, *options: str) -> LoadedModel:
    assert main(["import", str(source), "--format", format, "--output", str(output), *options]) == 0
    return load_model(output)


def difference(found: torch.Tensor, expected: NDArray[Any]) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found.numpy().astype(np.float64) - expected).max())


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.from_numpy(arrays("flexivit_input")["image"]).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    captions = [f"a {colour} {thing}" for colour in ("red", "blue", "green") for thing in ("fox", "owl", "apple", "boat")]
    return train_sentencepiece(captions, tmp_path_factory.mktemp("spm") / "captions.model", 60, lowercase=True)


@pytest.mark.parametrize("pool", ["gap", "map"])
@torch.no_grad()
def test_import_of_big_visions_image_towers_gives_the_golden_outputs(
    pool: str, pixels: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = arrays(f"flexivit_{pool}_outputs")
    assert {int(name[1:].split("_")[0]) for name in expected if "pre_logits" in name} == set(PATCHES[pool])
    loaded = run_import(GOLDEN / f"flexivit_{pool}_params.npz", "big_vision", tmp_path / "m")
    for patch in PATCHES[pool]:
        features = loaded.model.image_tower(pixels, seqhw=240 // patch)
        assert difference(features, expected[f"p{patch}_pre_logits"]) < 2e-5
        assert difference(loaded.model.encode_image(pixels, 240 // patch), expected[f"p{patch}_logits"]) < 2e-5
    image = loaded.config.model.image
    assert (image.width, image.heads, image.pool, image.image_size, image.base_grid) == (64, 4, pool, 240, 7)
    out = capsys.readouterr().out
    assert f"pool {pool}, kernel 32x32, grid 7x7, images of 240x240 px" in out
    assert f"{31 if pool == 'gap' else 44} tensors mapped, none missing, none unused" in out
    assert (
        run_import(GOLDEN / f"flexivit_{pool}_params.npz", "big_vision", tmp_path / "m", "--heads", "4").config == loaded.config
    )


@torch.no_grad()
def test_import_of_big_visions_two_towers_gives_the_golden_outputs(
    pixels: torch.Tensor, vocabulary: Path, tmp_path: Path
) -> None:
    image, text, rng = arrays("flexivit_gap_params"), arrays("text_params"), np.random.default_rng(0)
    kernel, bias = rng.normal(size=(64, 32)).astype(np.float32) / 8, rng.normal(size=32).astype(np.float32)
    image |= {"head/kernel": kernel, "head/bias": bias}
    both = {f"params/img/{name}": a for name, a in image.items()} | {f"params/txt/{name}": a for name, a in text.items()}
    both |= {"params/t": np.array([2.5], np.float32), "params/b": np.array([-10.0], np.float32)}
    np.savez(tmp_path / "both.npz", **both)
    loaded = run_import(tmp_path / "both.npz", "big_vision", tmp_path / "m", "--text", str(vocabulary), "--image-size", "240")
    (tmp_path / "both.npz").unlink()
    outputs, tokens = arrays("text_outputs"), torch.from_numpy(arrays("text_outputs")["text"].astype(np.int64))
    assert difference(loaded.model.encode_text(tokens), outputs["last_logits"]) < 2e-5
    for patch in PATCHES["gap"]:
        features = arrays("flexivit_gap_outputs")[f"p{patch}_pre_logits"]
        assert difference(loaded.model.encode_image(pixels, 240 // patch), features @ kernel + bias) < 2e-5
    assert loaded.model.logit_scale.tolist() == [2.5]
    assert loaded.config.patch.seqhw == (8,), "the valid length nearest the stored grid"
    assert loaded.model.logit_bias is not None
    assert loaded.model.logit_bias.tolist() == [-10.0]
    row = loaded.tokenizer(["A red FOX"])[0]
    assert (len(row), row[-1]) == (16, loaded.tokenizer.eos_id)
    assert torch.equal(row, loaded.tokenizer(["a red fox"])[0])


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """The folder of an imported image tower."""
    run_import(GOLDEN / "flexivit_gap_params.npz", "big_vision", tmp_path / "alone")
    return tmp_path / "alone"


def test_the_absent_text_half_says_so(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load_model(alone)
    assert loaded.config.model.text is None
    assert not any("text" in name for name in loaded.model.state_dict())
    assert not (alone / "tokenizer").exists()
    for ask in (
        lambda: loaded.model.encode_text(torch.zeros(1, 3, dtype=torch.long)),
        lambda: loaded.tokenizer(["a fox"]),
        lambda: loaded.model(torch.zeros(1, 3, 240, 240), torch.zeros(1, 3, dtype=torch.long)),
    ):
        with pytest.raises(UserError, match="an image tower alone"):
            ask()
    capsys.readouterr()
    assert main(["eval", str(alone), "--suite", "openmoji"]) == 2
    err = capsys.readouterr().err
    assert "zero-shot tasks need its text half" in err
    assert err.count("\n") == 1
    with pytest.raises(UserError, match=r"model\.text=null is an image tower alone: objective=classification trains one"):
        load("debug", ["model.text=null"])


def recipe(folder: Path, vocabulary: Path, **image: Any) -> Config:
    tower = {"width": 64, "depth": 2, "heads": 4, "mlp_dim": 128, "lock": True, "init": str(folder), **image}
    text = {"width": 16, "depth": 1, "heads": 2}
    return from_dict(
        Config,
        {
            "model": {"image": tower, "text": text, "embed_dim": 8},
            "tokenizer": {"path": str(vocabulary), "context_length": 8},
        },
    )


@torch.no_grad()
def test_a_recipe_starts_from_it(alone: Path, vocabulary: Path, pixels: torch.Tensor) -> None:
    """FlexiLiT: the imported tower frozen, a fresh text tower, and fresh projections where the old head has another size."""
    built = build_model(recipe(alone, vocabulary))
    expected = arrays("flexivit_gap_outputs")["p16_pre_logits"]
    assert difference(built.model.image_tower(pixels, 15), expected) < 2e-5
    assert built.model.image_projection.weight.shape == (8, 64)
    assert built.model.encode_text(built.tokenizer(["a red fox"])).shape == (1, 8)
    for changes, said in (
        ({"activation": "gelu"}, "was trained with activation=gelu_tanh"),
        ({"heads": 2}, "was trained with heads=4"),
        ({"kernel_antialias": True, "norm_eps": 1e-5}, "norm_eps=1e-06, kernel_antialias=False"),
    ):
        with pytest.raises(UserError, match=said):
            build_model(recipe(alone, vocabulary, **changes))
    text, image = {"width": 64, "depth": 2, "heads": 4, "init": str(alone)}, {"width": 16, "depth": 1}
    with pytest.raises(UserError, match="the model has no text tower"):
        build_model(from_dict(Config, {"model": {"image": image, "text": text}, "tokenizer": {"path": str(vocabulary)}}))


def test_the_source_is_noted(alone: Path) -> None:
    said = yaml.safe_load((alone / "config.yaml").read_text())
    assert said["model"]["text"] is None
    assert said["provenance"]["source"] == str(GOLDEN / "flexivit_gap_params.npz")
    assert said["provenance"]["source_format"] == "big_vision"
    assert "FlexiViT of 240 px" in said["provenance"]["import_notes"][0]
    assert said["patch"]["seqhw"] == [5, 6, 8, 10, 12, 15, 16, 20, 24, 30]


class Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("unpickled"),)


def damaged(kind: str, path: Path) -> None:
    npz = (GOLDEN / "flexivit_gap_params.npz").read_bytes()
    if kind == "truncated npz":
        path.write_bytes(npz[: len(npz) // 2])
    elif kind == "corrupted npz":
        path.write_bytes(npz[:30_000] + bytes(200) + npz[30_200:])
    elif kind == "bare array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"kernel": Payload()}))
    elif kind == "torch with code":
        torch.save({"kernel": torch.zeros(2), "code": Payload()}, path)
    elif kind == "no state dict":
        torch.save([1, 2], path)
    elif kind == "truncated torch":
        torch.save({"a": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "truncated safetensors":
        save_file({"a": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "foreign safetensors":
        save_file({"a": torch.zeros(3)}, path)
    else:
        path.write_text(json.dumps({"text": "no weights"}))


@pytest.mark.parametrize(
    ("kind", "format", "name"),
    [
        *((kind, "big_vision", "w.npz") for kind in ("truncated npz", "corrupted npz", "bare array", "empty", "pickle", "json")),
        *((kind, "timm", "w.bin") for kind in ("empty", "pickle", "torch with code", "no state dict", "truncated torch", "json")),
        *((kind, "timm", "w.safetensors") for kind in ("empty", "truncated safetensors", "foreign safetensors", "json")),
        *((kind, "open_clip", "w.pt") for kind in ("empty", "torch with code", "truncated torch", "json")),
        *((kind, "open_clip", "w.safetensors") for kind in ("truncated safetensors", "foreign safetensors")),
        ("json", "siglip", "w.safetensors"),
    ],
)
def test_damaged_and_foreign_files(
    kind: str, format: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    damaged(kind, tmp_path / name)
    source = f"ViT-S-32-alt/{tmp_path / name}" if format == "open_clip" else str(tmp_path / name)
    assert main(["import", source, "--format", format, "--output", str(tmp_path / "m")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("flexiclip: ")
    assert err.count("\n") == 1
    assert str(tmp_path / name) in err
    assert [path.name for path in tmp_path.iterdir()] == [name], "no code was run, and nothing was written"


def test_import_refuses_wrong_options_and_occupied_places(
    alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, occupied = str(GOLDEN / "flexivit_gap_params.npz"), tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "thesis.txt").write_text("mine")
    for arguments, message in (
        ([source, "--format", "onnx", "--output", str(tmp_path / "x")], "--format onnx: choose one of big_vision, timm"),
        ([source, "--output", str(tmp_path / "x")], "--format"),
        ([str(tmp_path / "none.npz"), "--format", "big_vision", "--output", str(tmp_path / "x")], "none.npz"),
        ([source, "--format", "big_vision", "--output", str(occupied)], "is not a model folder"),
    ):
        capsys.readouterr()
        assert main(["import", *arguments]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
    assert (occupied / "thesis.txt").read_text() == "mine"
    run_import(source, "big_vision", alone)  # over an older model
