"""The shape bias by hand, and the cues in a file's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flexiclip_eval.analysis.cue_conflict import Answer, Conflict, bias_of, read_conflicts
from PIL import Image

from flexiclip.errors import UserError


def test_shape_bias_by_hand() -> None:
    """Of six answers three are the shape, one the texture, two neither: 3/4. Between the two alone five are the shape."""
    cues = [("cat", "car"), ("cat", "key"), ("cat", "car"), ("car", "cat"), ("car", "key"), ("key", "cat")]
    conflicts = [Conflict(i, shape, texture) for i, (shape, texture) in enumerate(cues)]
    named = ["cat", "cat", "car", "car", "cat", "car"]
    bias = bias_of([Answer(name, name != "car" or i > 2) for i, name in enumerate(named)], conflicts)
    assert (bias.images, bias.shape, bias.texture, bias.bias, bias.nearer) == (6, 3 / 6, 1 / 6, 3 / 4, 5 / 6)
    assert bias.by_shape == {"cat": 2 / 3, "car": 1.0, "key": None}
    assert bias_of([Answer("cup", False)] * 6, conflicts).bias is None


def test_the_cues_of_a_file_are_in_its_name(tmp_path: Path) -> None:
    def write(*names: str) -> Path:
        folder = tmp_path / names[0].replace("/", "_")
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(folder / name)
        return folder

    found = read_conflicts(write("cat/cat1-car2.png", "cat/cat3-cat1.png", "car/car10-traffic_light4.png"))
    assert found == [Conflict(0, "car", "traffic_light"), Conflict(1, "cat", "car")]
    wrong: list[tuple[Any, str]] = [
        (("cat/dog1-car2.png",), "the name must be cat1-TEXTURE1.png"),
        (("cat/photo.png",), "the name must be cat1-TEXTURE1.png"),
        (("cat/cat1-cat2.png",), "nothing conflicts"),
    ]
    for names, message in wrong:
        with pytest.raises(UserError, match=message):
            read_conflicts(write(*names))
