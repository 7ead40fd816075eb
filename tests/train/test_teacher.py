"""The teacher of a distillation: its length, what it sees, and what it gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from flexiclip.bundle import LoadedModel, build_model
from flexiclip.config import Config, from_dict
from flexiclip.errors import UserError
from flexiclip.train.objectives.teacher import teacher_seqhw

TOWER = {"width": 16, "depth": 1, "heads": 2, "image_size": 48, "base_patch_size": 16, "base_grid": 3}
MODEL = {"image": TOWER, "text": None, "classes": 3, "embed_dim": 3}


def taught(patch: dict[str, Any]) -> LoadedModel:
    """A classifier whose recipe trains these lengths."""
    return build_model(from_dict(Config, {"model": MODEL, "patch": patch, "train": {"steps": 10}}))


@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        ({"seqhw": [3, 6, 4]}, 6),
        ({"seqhw": [4], "stages": [{"start": "50%", "seqhw": [3, 4, 6]}]}, 6),
        ({"seqhw": [4, 8], "weights": [1, 0]}, 4),
        ({"seqhw": [6, 8], "stages": [{"start": 0, "seqhw": [3, 4]}]}, 4),
        ({"seqhw": [3, 4, 8], "curriculum": "clipa"}, 8),
    ],
)
def test_teacher_seqhw_is_the_longest_that_it_was_trained_at(patch: dict[str, Any], expected: int) -> None:
    teacher, student = taught(patch), from_dict(Config, {"model": MODEL, "patch": {"seqhw": [2]}})
    assert teacher_seqhw(student, teacher) == expected
    asked = replace(student, distillation=replace(student.distillation, seqhw=2))
    assert teacher_seqhw(asked, teacher) == 2
    with pytest.raises(UserError, match=r"distillation\.seqhw=5 does not divide model\.image\.image_size=48: set one of"):
        teacher_seqhw(replace(student, distillation=replace(student.distillation, seqhw=5)), teacher)
    smaller = from_dict(Config, {"model": {**MODEL, "image": {**TOWER, "image_size": 35}}, "patch": {"seqhw": [5]}})
    with pytest.raises(UserError, match=rf"={expected}, the longest that the teacher was trained at, does not divide"):
        teacher_seqhw(smaller, teacher)
