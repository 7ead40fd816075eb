"""The teacher of a distillation: its length, and what a student takes from it. What it gives: test_objectives_losses.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from kit.two_towers import IMAGE, model_of

from flexiclip.config import Config, DistillationConfig, from_dict
from flexiclip.errors import UserError
from flexiclip.model_folder import LoadedModel, build_model
from flexiclip.train.objectives import follow, teacher_seqhw

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
    teacher = taught(patch)
    assert teacher_seqhw(None, 48, teacher) == expected
    assert teacher_seqhw(2, 48, teacher) == 2
    with pytest.raises(UserError, match=r"distillation\.seqhw=5 does not divide model\.image\.image_size=48: set one of"):
        teacher_seqhw(5, 48, teacher)
    with pytest.raises(UserError, match=rf"={expected}, the longest that the teacher was trained at, does not divide"):
        teacher_seqhw(None, 35, teacher)


def test_follow_starts_a_student_with_its_teachers_scale_or_classes() -> None:
    teacher = model_of(1, logit_scale_init=50.0, logit_scale_max=60.0)
    with torch.no_grad():
        teacher.model.logit_scale.fill_(np.log(120.0))
    student = model_of(0).config.model
    followed = follow(student, teacher)
    assert followed.logit_scale_init == pytest.approx(120.0, rel=1e-6)
    assert followed.logit_scale_max == followed.logit_scale_init, "above the student's own limit of 100"
    with torch.no_grad():
        teacher.model.logit_scale.fill_(np.log(20.0))
    assert follow(student, teacher).logit_scale_max == 100.0
    assert replace(follow(student, teacher), logit_scale_init=1.0) == replace(student, logit_scale_init=1.0)

    named = model_of(1, text=None, classes=("a", "b", "c"), embed_dim=3)
    followed = follow(from_dict(Config, {"model": {"image": IMAGE, "text": None, "embed_dim": 99}}).model, named)
    assert (followed.classes, followed.embed_dim) == (("a", "b", "c"), 3)


def test_distillation_weights_that_are_all_zero_are_refused() -> None:
    for given in ({"kl": 0.0}, {"kl": -1.0}, {"kl": 1.0, "cosine": -0.5}, {"temperature": 0.0}):
        with pytest.raises(UserError, match=r"distillation\.(kl|temperature)="):
            DistillationConfig(**given)
