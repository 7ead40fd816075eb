"""The importer's strictness; that its weights land in the right places is for test_flexivit.py and test_text.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from kit.golden import FOLDER

from flexiclip.errors import UserError
from flexiclip.formats.big_vision_reader import image_tower_state, read_npz, split_head, text_tower_state


def test_prefixed_files_read_alike(tmp_path: Path) -> None:
    plain = read_npz(FOLDER / "text_params.npz")
    np.savez(tmp_path / "prefixed.npz", **{f"params/{name}": array for name, array in plain.items()})
    prefixed = read_npz(tmp_path / "prefixed.npz")
    assert prefixed.keys() == plain.keys()
    assert all(np.array_equal(prefixed[name], plain[name]) for name in plain)


def test_arrays_left_over_or_missing_are_named() -> None:
    text, _ = split_head(read_npz(FOLDER / "text_params.npz"))
    with pytest.raises(UserError, match=r"without a place in the tower: opt/count; "):
        text_tower_state({**text, "opt/count": np.zeros(1)})
    with pytest.raises(UserError, match=r"without a place in the tower: head/bias, head/kernel; "):
        text_tower_state(read_npz(FOLDER / "text_params.npz"))
    image, _ = split_head(read_npz(FOLDER / "flexivit_map_params.npz"))
    with pytest.raises(UserError, match="'embedding/kernel' is missing"):
        image_tower_state(text)
    with pytest.raises(UserError, match="48 positions, not a square grid"):
        image_tower_state({**image, "pos_embedding": image["pos_embedding"][:, :48]})


def test_pickles_and_other_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "pickle.npz", head=np.array([{"a": 1}], dtype=object))
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("pickle.npz", "text.npz", "missing.npz"):
        with pytest.raises(UserError, match="cannot read it as an"):
            read_npz(tmp_path / name)


def test_the_head_is_a_linear_layer() -> None:
    arrays = read_npz(FOLDER / "text_params.npz")
    tower, head = split_head(arrays)
    assert np.array_equal(head["weight"].numpy(), np.asarray(arrays["head/kernel"]).T)
    assert np.array_equal(head["bias"].numpy(), arrays["head/bias"])
    assert tower.keys() | {"head/kernel", "head/bias"} == arrays.keys()
    assert split_head(tower)[1] == {}
