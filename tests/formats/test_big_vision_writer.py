"""Models written as big_vision's `.npz`: its names, shapes and bits, every length kept, and what it cannot express."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.exports import IMAGES, assert_model_refused, export_model
from kit.golden import FOLDER

from flexiclip import load_model
from flexiclip.__main__ import main
from flexiclip.formats.big_vision_writer import write
from flexiclip.model_folder import LoadedModel


@pytest.mark.parametrize("pool", ["gap", "map"])
def test_big_vision_in_and_out_is_bit_equal(pool: str, tmp_path: Path) -> None:
    """Arrays of big_vision's own models: every one comes back, with its name, shape and bits."""
    source = FOLDER / f"flexivit_{pool}_params.npz"
    command = ["import", str(source), "--format", "big_vision", "--output", str(tmp_path / "m")]
    assert main(command) == 0
    assert export_model(tmp_path / "m", "big_vision", tmp_path / "out.npz") == 0
    with np.load(source) as before, np.load(tmp_path / "out.npz", allow_pickle=False) as after:
        names = {name.removeprefix("params/"): name for name in before.files}
        assert set(names) == set(after.files)
        for name in after.files:
            assert before[names[name]].dtype == after[name].dtype == np.float32
            assert np.array_equal(before[names[name]], after[name]), name


@torch.no_grad()
def test_two_towers_through_big_vision(
    folders: dict[str, Path], opened: dict[str, LoadedModel], vocabulary: Path, tmp_path: Path
) -> None:
    assert export_model(folders["siglip"], "big_vision", tmp_path / "two.npz") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["two.md", "two.npz"]
    options = ["--text", str(vocabulary), "--image-size", "48", "--output", str(tmp_path / "again")]
    assert main(["import", str(tmp_path / "two.npz"), "--format", "big_vision", *options]) == 0
    again, before = load_model(tmp_path / "again").model, opened["siglip"].model
    after = again.state_dict()
    assert after.keys() == before.state_dict().keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.state_dict().items())
    assert torch.equal(again.encode_image(IMAGES, 8), before.encode_image(IMAGES, 8)), "every length is kept"


def test_write_big_vision_scalars_heads_and_usage(make: Callable[..., Path], tmp_path: Path) -> None:
    """A projection of ours without a bias is a head of flax with one of zeros; a tower without a projection has no head."""
    loaded = load_model(make("siglip", text={"projection_bias": False}))
    written = write(loaded, tmp_path / "file", "shown.npz")
    with np.load(tmp_path / "file", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    assert arrays["t"].tolist() == loaded.model.logit_scale.tolist()
    assert loaded.model.logit_bias is not None
    assert arrays["b"].tolist() == loaded.model.logit_bias.tolist()
    assert np.array_equal(arrays["txt/head/kernel"], loaded.model.text_projection.weight.detach().numpy().T)
    assert np.array_equal(arrays["txt/head/bias"], np.zeros(32, np.float32))
    assert not any(name.startswith("img/head") for name in arrays)
    assert arrays["img/embedding/kernel"].shape == (16, 16, 3, 32)
    assert arrays["img/pos_embedding"].shape == (1, 16, 32)
    assert arrays["txt/Encoder_0/encoderblock_1/MultiHeadDotProductAttention_0/query/kernel"].shape == (32, 4, 8)
    assert "load_params('shown.npz')" in written.usage
    assert "pool_type='map', a 16x16 kernel and a 4x4 grid" in written.usage
    assert (written.encode_image, written.encode_text) == (None, None)
    assert written.notes == ("read again, every tensor is the model's own bit for bit",)


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("ours", {}, "masks attention"),
        ("clip", {}, "activation=quick_gelu"),
        ("siglip", {"image": {"kernel_resize": "bicubic"}}, "at other lengths it would be another model"),
        ("siglip", {"image": {"grid_antialias": False}}, "at other lengths it would be another model"),
        ("siglip", {"image": {"pre_norm": True}}, "has a norm before the blocks"),
        ("siglip", {"image": {"norm_eps": 1e-5}}, "norm_eps=1e-05"),
        ("siglip", {"image": {"base_grid": (4, 3)}}, "grid of 4x3 is not square"),
        ("siglip", {"text": {"norm_eps": 1e-5}}, "model.text.activation=gelu_tanh, norm_eps=1e-05"),
        ("siglip", {"text": {"causal": True}}, "masks attention"),
        ("siglip", {"text": {"pool": "eos"}}, "model.text.pool=eos"),
    ],
)
def test_write_big_vision_refuses_what_it_cannot_express(
    name: str,
    changes: dict[str, Any],
    reason: str,
    make: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert_model_refused(make(name, **changes), "big_vision", reason, tmp_path / "m.npz", capsys)
