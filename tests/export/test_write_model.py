"""Whole models in other libraries' forms: the card beside them, and what is refused before and after anything is written.

That each library computes the same is for tests/formats/test_*_writer.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kit.exports import assert_model_refused, assert_refused, export_model

from flexiclip import load_model
from flexiclip.export import write_model
from flexiclip.export.agreement import Disagreement
from flexiclip.model_folder import save_model


def test_export_model_writes_a_card_and_says_what_it_measured(folders: dict[str, Path], tmp_path: Path) -> None:
    lines = write_model.export_model(str(folders["clip"]), tmp_path / "m", "timm", 4).lines
    assert lines[0] == f"{tmp_path / 'm'}: timm model at seqhw 4"
    assert [line.split(":")[0] for line in lines[1:]] == ["8 random images", "8 drawn images"]
    card = (tmp_path / "m" / "README.md").read_text()
    for fact in ("seqhw 4", "step: 7", "trained at seqhw: 2, 3, 4, 6, 8", "smallest cosine", "states no licence"):
        assert fact in card
    assert all(line in card for line in lines[1:])
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_export_model_compares_the_texts_too(folders: dict[str, Path], tmp_path: Path) -> None:
    lines = write_model.export_model(str(folders["siglip"]), tmp_path / "m", "transformers").lines
    assert lines[0].endswith("transformers model at seqhw 6")
    assert [line.split(":")[0] for line in lines[-4:]] == ["8 random images", "8 drawn images", "8 random texts", "8 sentences"]


def test_export_model_that_another_library_computes_otherwise_is_not_kept(make: Callable[..., Path], tmp_path: Path) -> None:
    """A NaN is far from everything, also from itself; the folder that was there before, empty, is gone too."""
    loaded = load_model(make("clip"))
    with torch.no_grad():
        loaded.model.image_tower.norm.weight[0] = float("nan")
    save_model(tmp_path / "model", loaded)
    (tmp_path / "m").mkdir()
    with pytest.raises(Disagreement, match=r"\(images\) is not the model, and was not kept: 8 random images"):
        write_model.export_model(str(tmp_path / "model"), tmp_path / "m", "timm")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "keras"], "open_clip, timm, transformers, big_vision"),
        (["--format", "big_vision", "--seqhw", "2"], "keeps the base kernel"),
        (["--format", "big_vision"], "name it .npz"),
    ],
)
def test_export_model_names_mistakes_in_one_line(
    options: list[str], message: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(["model", str(folders["siglip"]), *options], message, tmp_path / "out", capsys)


@pytest.mark.parametrize("fmt", write_model.FORMATS)
def test_export_model_refuses_patches_that_overlap(
    fmt: str, make: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make("ours", image={"flexible": "stride"})
    assert_model_refused(folder, fmt, "cannot express patches that overlap", tmp_path / "m.npz", capsys)


@pytest.mark.parametrize(("fmt", "name"), [("timm", "thesis.tex"), ("big_vision", "thesis.npz")])
def test_export_overwrites_no_file(
    fmt: str, name: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("In the beginning")
    assert export_model(folders["siglip"], fmt, tmp_path / name) == 2
    assert "something is there already" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "In the beginning"


def test_export_overwrites_nothing(folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.tex").write_text("In the beginning")
    assert export_model(folders["ours"], "timm", tmp_path / "m") == 2
    assert "something is there already" in capsys.readouterr().err
    assert (tmp_path / "m" / "thesis.tex").read_text() == "In the beginning"
