"""The image processors of transformers' folders: the pixels of transformers' own for what is read, and a reason for the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from flexiclip.config.schema import PreprocessConfig
from flexiclip.data.images import EvalTransform
from flexiclip.errors import UserError
from flexiclip.formats.transformers_images import read_image_processor

SIDE = 48
SQUARE = {"height": SIDE, "width": SIDE}
SHORT = {"shortest_edge": SIDE}
CLIP = {"image_processor_type": "CLIPImageProcessor", "size": SHORT, "crop_size": SQUARE, "do_center_crop": True}
SIGLIP = {"image_processor_type": "SiglipImageProcessor", "size": SQUARE}
VIT = {"image_processor_type": "ViTImageProcessor", "size": SQUARE}


def written(folder: Path, said: dict[str, Any], newer: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    name, content = ("processor_config.json", {"image_processor": said}) if newer else ("preprocessor_config.json", said)
    (folder / name).write_text(json.dumps(content))
    return folder


def picture(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width)
    coarse = Image.fromarray(rng.integers(0, 256, size=(height // 3, width // 3, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def theirs(folder: Path, image: Image.Image, backend: str) -> torch.Tensor:
    processor = AutoImageProcessor.from_pretrained(folder, backend=backend)
    return processor(image, return_tensors="pt")["pixel_values"][0]


READ: dict[str, dict[str, Any]] = {
    "CLIP": CLIP,
    "CLIP, bilinear": CLIP | {"resample": 2},
    "CLIP, its mean and std": CLIP | {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
    "CLIP, one number for all channels": CLIP | {"image_mean": 0.4, "image_std": 0.25},
    "CLIP, not normalised": CLIP | {"do_normalize": False},
    "CLIP, not rescaled": CLIP | {"do_rescale": False, "image_mean": [100, 110, 120], "image_std": [50, 60, 70]},
    "CLIP, neither": CLIP | {"do_rescale": False, "do_normalize": False},
    "CLIP, another factor": CLIP | {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 0.9, 1.1]},
    "CLIP, another factor, not normalised": CLIP | {"rescale_factor": 0.5, "do_normalize": False},
    "CLIP, sizes of before": CLIP | {"size": SIDE, "crop_size": SIDE},
    "CLIP, a list as size": CLIP | {"size": [SIDE, SIDE], "crop_size": [SIDE, SIDE]},
    "CLIP, squashed": CLIP | {"size": SQUARE, "do_center_crop": False},
    "CLIP, squashed, and cut to all": CLIP | {"size": SQUARE},
    "CLIP, of transformers 4": CLIP | {"image_processor_type": "CLIPImageProcessorFast"},
    "CLIP, of before image processors": {"feature_extractor_type": "CLIPFeatureExtractor", "size": SIDE, "crop_size": SIDE},
    "SigLIP": SIGLIP,
    "SigLIP, bilinear": SIGLIP | {"resample": 2, "image_mean": [0.2, 0.3, 0.4]},
    "SigLIP, not normalised": SIGLIP | {"do_normalize": False},
    "SigLIP, cut": SIGLIP | {"size": SHORT, "do_center_crop": True, "crop_size": SQUARE},
    "SigLIP, null is false": SIGLIP | {"do_rescale": None, "do_center_crop": None},
    "ViT, bilinear by default": VIT,
    "ViT, one number is a square": VIT | {"size": SIDE, "resample": 3},
}


@pytest.mark.parametrize("newer", [False, True], ids=["preprocessor_config", "processor_config"])
@pytest.mark.parametrize("case", READ)
def test_read_image_processor_gives_the_pixels_of_transformers(case: str, newer: bool, tmp_path: Path) -> None:
    folder = written(tmp_path / "hf", READ[case], newer)
    siglip = "SigLIP" in case
    preprocess, _ = read_image_processor(folder, siglip, (SIDE, SIDE))
    ours = EvalTransform((SIDE, SIDE), preprocess)
    for width, height in ((96, 64), (64, 112), (50, 50), (30, 20)):
        image = picture(width, height)
        pixels = ours(image)
        assert pixels.shape == (3, SIDE, SIDE)
        exact = theirs(folder, image, "pil").float()
        torch.testing.assert_close(pixels, exact, rtol=1e-5, atol=1e-5 * max(1.0, float(exact.abs().max())))
        steps = (pixels - theirs(folder, image, "torchvision").float()).abs() * 255 * torch.tensor(preprocess.std).view(3, 1, 1)
        assert float(steps.max()) < 4, "torchvision resizes bytes with rounded weights"
        assert float(steps.mean()) < 0.3


def test_the_newer_file_comes_first_and_one_of_another_kind_is_passed_over(tmp_path: Path) -> None:
    written(tmp_path / "hf", CLIP | {"image_mean": [0.1, 0.1, 0.1]})
    folder = written(tmp_path / "hf", CLIP | {"image_mean": [0.2, 0.2, 0.2]}, newer=True)
    assert read_image_processor(folder, False, (SIDE, SIDE))[0].mean == (0.2, 0.2, 0.2)
    (folder / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')  # as transformers 4 wrote it
    assert read_image_processor(folder, False, (SIDE, SIDE))[0].mean == (0.1, 0.1, 0.1)
    assert float(theirs(folder, Image.new("RGB", (SIDE, SIDE)), "pil")[0, 0, 0]) == pytest.approx(-0.1 / 0.26862954)


@pytest.mark.parametrize("siglip", [False, True])
def test_a_folder_that_says_nothing_has_the_published_values_and_a_note(siglip: bool, tmp_path: Path) -> None:
    preprocess, notes = read_image_processor(tmp_path, siglip, (SIDE, SIDE))
    clip = PreprocessConfig((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    assert preprocess == (PreprocessConfig(resize="squash") if siglip else clip)
    assert "does not say how it prepares images" in notes[0]


def test_what_changes_the_pixels_beside_mean_and_std_is_noted(tmp_path: Path) -> None:
    for more, said in (
        ({"do_normalize": False}, "do_normalize: false"),
        ({"do_rescale": False}, "do_rescale: false"),
        ({"rescale_factor": 0.5}, "multiplied with 0.5"),
    ):
        _, notes = read_image_processor(written(tmp_path / "hf", CLIP | more), False, (SIDE, SIDE))
        assert len(notes) == 1
        assert said in notes[0]
    assert read_image_processor(written(tmp_path / "hf", CLIP), False, (SIDE, SIDE))[1] == []


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no resize": (CLIP | {"do_resize": False}, "do_resize: false"),
    "cut from more": (CLIP | {"size": {"shortest_edge": 64}}, "resized to a short side of 64 and then cut to 48x48"),
    "cut from less": (CLIP | {"size": {"shortest_edge": 40}}, "short side of 40 and then cut to 48x48"),
    "cut from a larger square": (CLIP | {"size": {"height": 64, "width": 64}}, "resized to 64x64 and then cut to 48x48"),
    "shape kept": (CLIP | {"do_center_crop": False}, "images keep their shape"),
    "shape kept by one number": (SIGLIP | {"size": SIDE}, "images keep their shape"),
    "another size": (
        SIGLIP | {"size": {"height": 64, "width": 64}},
        "makes images of 64x64 pixels, but the tower .* takes 48x48",
    ),
    "another size, cut": (
        CLIP | {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}},
        "makes images of 64x64",
    ),
    "oblong": (SIGLIP | {"size": {"height": 48, "width": 64}}, "makes images of 48x64"),
    "both edges": (
        CLIP | {"size": {"shortest_edge": 48, "longest_edge": 90}},
        "size is {'shortest_edge': 48, 'longest_edge': 90}",
    ),
    "most pixels": (CLIP | {"size": {"max_height": 48, "max_width": 48}}, "size is"),
    "crop by an edge": (CLIP | {"crop_size": SHORT}, "crop_size is"),
    "size as a text": (CLIP | {"size": "48"}, "size is '48'"),
    "nearest": (CLIP | {"resample": 0}, r"the filter 0 \(nearest\)"),
    "lanczos": (CLIP | {"resample": 1}, r"the filter 1 \(lanczos\)"),
    "box": (CLIP | {"resample": 4}, r"the filter 4 \(box\)"),
    "hamming": (CLIP | {"resample": 5}, r"the filter 5 \(hamming\)"),
    "filter of null": (CLIP | {"resample": None}, "the filter None"),
    "filter by name": (CLIP | {"resample": "bicubic"}, r"the filter 'bicubic' \(unknown\)"),
    "padding": (CLIP | {"do_pad": True, "pad_size": SQUARE}, "do_pad: true"),
    "kosmos": (CLIP | {"use_square_size": True}, "use_square_size"),
    "another class": ({"image_processor_type": "ConvNextImageProcessor", "size": SHORT}, "prepared by ConvNextImageProcessor"),
    "NaFlex": ({"image_processor_type": "Siglip2ImageProcessor"}, "prepared by Siglip2ImageProcessor"),
    "code": (CLIP | {"auto_map": {"AutoImageProcessor": "evil.Evil"}}, "code of its own"),
    "a mean of null": (CLIP | {"image_mean": None}, "image_mean is None"),
    "a factor of null": (CLIP | {"rescale_factor": None}, "rescale_factor is None"),
    "no resize by null": (CLIP | {"do_resize": None}, "do_resize: false"),
    "two means": (CLIP | {"image_mean": [0.1, 0.2]}, r"image_mean is \[0.1, 0.2\]"),
    "a mean in words": (CLIP | {"image_mean": "imagenet"}, "image_mean is 'imagenet'"),
    "std of zero": (CLIP | {"image_std": [0.1, 0.0, 0.1]}, "image_std is"),
    "infinite": (CLIP | {"image_mean": [0.1, float("inf"), 0.1]}, "image_mean is"),
    "no factor": (CLIP | {"rescale_factor": 0}, "rescale_factor is 0"),
    "a switch in words": (CLIP | {"do_normalize": "no"}, "do_normalize is 'no'"),
}


@pytest.mark.parametrize("newer", [False, True], ids=["preprocessor_config", "processor_config"])
@pytest.mark.parametrize("case", REFUSED)
def test_read_image_processor_refuses_what_our_transform_does_not_do(case: str, newer: bool, tmp_path: Path) -> None:
    said, message = REFUSED[case]
    folder = written(tmp_path / "hf", said, newer)
    with pytest.raises(UserError, match=message) as error:
        read_image_processor(folder, False, (SIDE, SIDE))
    name = "processor_config.json" if newer else "preprocessor_config.json"
    assert str(error.value).startswith(f"{folder / name}: ")
    assert "; " in str(error.value), "with what to do about it"
