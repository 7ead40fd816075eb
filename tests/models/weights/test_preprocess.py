"""How each source wants its images: mean, deviation, resize and interpolation, each unlike the others in every case here."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import timm

from flexiclip.config import PreprocessConfig
from flexiclip.formats import open_clip_reader as from_open_clip
from flexiclip.formats import timm_reader as from_timm

MEAN, STD = (0.11, 0.22, 0.33), (0.44, 0.55, 0.66)
CLIP = PreprocessConfig(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))


def expected(resize: str = "shortest", interpolation: str = "bicubic") -> PreprocessConfig:
    return PreprocessConfig(mean=MEAN, std=STD, resize=resize, interpolation=interpolation)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({}, expected()),
        ({"crop_mode": "squash"}, expected("squash")),
        ({"crop_mode": "center", "interpolation": "bilinear"}, expected(interpolation="bilinear")),
    ],
)
def test_timm_preprocess_is_that_of_its_weights(said: dict[str, Any], wanted: PreprocessConfig) -> None:
    model = SimpleNamespace(pretrained_cfg={"mean": MEAN, "std": STD, "interpolation": "bicubic", "crop_pct": 0.9} | said)
    found, notes = from_timm.preprocess_of(model)
    assert found == wanted
    assert notes == ["timm evaluates on the central 90%; here the whole short side is used"]


def test_timm_preprocess_of_a_published_architecture_with_unequal_mean_and_std() -> None:
    """The values of ImageNet, which timm keeps for augreg-free weights: none of them is a half."""
    model = from_timm.describe("deit_tiny_patch16_224")
    data = timm.data.resolve_data_config({}, model=model)
    found, _ = from_timm.preprocess_of(model)
    assert (found.mean, found.std) == (data["mean"], data["std"]) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert found.interpolation == data["interpolation"] == "bicubic"
    assert from_timm.preprocess_of(None)[0] == PreprocessConfig(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("published", "wanted"),
    [
        ({}, PreprocessConfig(mean=(0.1, 0.2, 0.3), std=(0.7, 0.8, 0.9), resize="squash", interpolation="bilinear")),
        ({"mean": MEAN, "std": STD, "resize_mode": "shortest", "interpolation": "bicubic"}, expected()),
        ({"mean": MEAN, "std": STD}, expected("squash", "bilinear")),
    ],
)
def test_open_clip_preprocess_is_that_of_the_weights_before_that_of_the_model(
    published: dict[str, Any], wanted: PreprocessConfig
) -> None:
    own = {"mean": [0.1, 0.2, 0.3], "std": [0.7, 0.8, 0.9], "resize_mode": "squash", "interpolation": "bilinear"}
    found = from_open_clip._preprocess(SimpleNamespace(preprocess_cfg=own), published, "w")
    assert found == wanted


def test_open_clip_preprocess_of_published_weights_is_what_all_of_them_say() -> None:
    for name in ("ViT-B-16", "ViT-B-16-SigLIP"):
        tags = open_clip.list_pretrained_tags_by_model(name)
        found = from_open_clip._published_preprocess(name)
        for key in ("mean", "std", "interpolation", "resize_mode"):
            said = {json.dumps(open_clip.get_pretrained_cfg(name, tag).get(key)) for tag in tags}
            assert ({json.dumps(found[key])} if key in found else said) == said
            assert (key in found) == (len(said) == 1 and said != {"null"})
