"""timm files through `flexiclip import`, against timm's own forward pass, and how they want their images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from kit.golden import largest_difference
from kit.weights import images, imported, perturbed, refused
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from flexiclip.config import PreprocessConfig
from flexiclip.formats import timm_reader as from_timm
from flexiclip.formats.imported import default_heads
from flexiclip.models.pi_resize import pi_resize

SMALL = {"img_size": 48, "patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 1, "num_classes": 0}


def saved(model: torch.nn.Module, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("arch", "seqhw", "pool"),
    [
        ("flexivit_small", 15, "tok"),
        ("vit_tiny_patch16_224", 14, "tok"),
        pytest.param("vit_base_patch16_siglip_224", 14, "map", marks=pytest.mark.slow),
        pytest.param("vit_base_patch16_clip_quickgelu_224", 14, "tok", marks=pytest.mark.slow),
        pytest.param("vit_base_patch16_siglip_gap_224", 14, "gap", marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_import_of_timms_published_architectures(arch: str, seqhw: int, pool: str, tmp_path: Path) -> None:
    theirs = perturbed(timm.create_model(arch, num_classes=0), 0.02)
    ours = imported(saved(theirs, tmp_path / "w.safetensors"), "timm", tmp_path / "m", "--arch", arch)
    image = ours.config.model.image
    batch = images(16 * seqhw)
    expected = theirs(batch)
    assert (image.pool, image.image_size, ours.model.image_tower.default_seqhw()) == (pool, 16 * seqhw, seqhw)
    assert largest_difference(ours.model.image_tower(batch), expected) < 1e-5
    assert largest_difference(ours.model.encode_image(batch, seqhw), expected) < 1e-5
    assert ours.model.encode_image(batch, seqhw // 2 if seqhw % 2 == 0 else seqhw // 3).shape == expected.shape
    cfg = theirs.pretrained_cfg
    assert ours.config.model.preprocess.mean == cfg["mean"]
    assert ours.config.model.preprocess.std == cfg["std"]
    assert ours.provenance["source_format"] == "timm"
    assert "license" not in ours.provenance, "an architecture has weights of several licences"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_classes": 5},
        {"class_token": False, "global_pool": "map", "num_heads": 1},
        {"class_token": False, "global_pool": "avg", "fc_norm": False, "qkv_bias": False},
        {"init_values": 0.3, "no_embed_class": True},
    ],
    ids=["class token", "classifier", "map", "mean without qkv bias", "layer scale"],
)
@torch.no_grad()
def test_every_part_without_a_name(changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = perturbed(VisionTransformer(**SMALL | changes))
    ours = imported(saved(theirs, tmp_path / "w.bin"), "timm", tmp_path / "m", "--image-size", "48")
    assert largest_difference(ours.model.encode_image(images(48)), theirs(images(48))) < 1e-5
    assert ours.config.model.embed_dim == changes.get("num_classes", 64)
    assert ours.config.patch.seqhw == (3,)


@torch.no_grad()
def test_heads_are_those_of_the_option_or_one_for_64_channels(tmp_path: Path) -> None:
    theirs = perturbed(VisionTransformer(**SMALL | {"num_heads": 4}), 0.2)
    path, size = saved(theirs, tmp_path / "w.bin"), ("--image-size", "48")
    ours = imported(path, "timm", tmp_path / "m", "--heads", "4", *size)
    assert largest_difference(ours.model.encode_image(images(48)), theirs(images(48))) < 1e-5
    assert (
        largest_difference(imported(path, "timm", tmp_path / "d", *size).model.encode_image(images(48)), theirs(images(48)))
        > 1e-3
    )


@pytest.mark.parametrize(
    ("width", "heads"), [(192, 3), (384, 6), (768, 12), (1024, 16), (1152, 16), (1280, 16), (1408, 16), (1664, 16)]
)
def test_default_heads_are_those_of_the_published_vits(width: int, heads: int) -> None:
    """Ti, S, B, L, So400m, H, g and G of timm's and big_vision's models."""
    assert default_heads(width) == heads


@torch.no_grad()
def test_another_length_is_a_pi_resize_of_the_own_kernel(tmp_path: Path) -> None:
    """timm at patch 8 on the same image, its kernel and grid resized by hand, is ours at twice the grid."""
    theirs = perturbed(VisionTransformer(**SMALL, no_embed_class=True))
    ours = imported(saved(theirs, tmp_path / "w.bin"), "timm", tmp_path / "m", "--image-size", "48")
    finer = VisionTransformer(**SMALL | {"patch_size": 8}, no_embed_class=True).eval()
    state = theirs.state_dict()
    state["patch_embed.proj.weight"] = pi_resize(state["patch_embed.proj.weight"], 8)
    grid = state["pos_embed"].transpose(1, 2).reshape(1, 64, 3, 3)
    resized = torch.nn.functional.interpolate(grid, size=(6, 6), mode="bilinear", antialias=True)
    state["pos_embed"] = resized.flatten(2).transpose(1, 2)
    finer.load_state_dict(state)
    assert largest_difference(ours.model.encode_image(images(48), 6), finer(images(48))) < 1e-5


def test_a_resized_flexivit_says_what_it_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"embed_dim": 64, "depth": 1, "num_heads": 1, "num_classes": 0, "no_embed_class": True}
    resized = imported(
        saved(VisionTransformer(img_size=240, patch_size=16, **small), tmp_path / "r.safetensors"), "timm", tmp_path / "r"
    )
    assert "already resized to 16x16" in capsys.readouterr().out
    assert "seqhw below 15" in " ".join(resized.provenance["import_notes"])
    base = imported(saved(VisionTransformer(img_size=224, patch_size=32, **small), tmp_path / "b.bin"), "timm", tmp_path / "b")
    assert "base kernel of 32x32" in capsys.readouterr().out
    for loaded in (resized, base):
        image = loaded.config.model.image
        assert (image.image_size, loaded.model.image_tower.default_seqhw()) == (240, 15)
        assert loaded.config.patch.seqhw == (5, 6, 8, 10, 12, 15, 16, 20, 24, 30)
    assert (base.config.model.image.base_patch_size, base.config.model.image.base_grid) == (32, 7)


@torch.no_grad()
def test_a_folder_names_its_architecture(tmp_path: Path) -> None:
    theirs = perturbed(timm.create_model("vit_tiny_patch16_224", num_classes=3), 0.02)
    folder = tmp_path / "hub"
    folder.mkdir()
    saved(theirs, folder / "model.safetensors")
    said = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"tag": "augreg_in21k"}}
    (folder / "config.json").write_text(json.dumps(said))
    named = imported(folder, "timm", tmp_path / "named")
    assert named.provenance["license"] == timm.create_model("vit_tiny_patch16_224.augreg_in21k").pretrained_cfg["license"]
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    ours = imported(folder, "timm", tmp_path / "m")
    assert largest_difference(ours.model.encode_image(images(224)), theirs(images(224))) < 1e-5
    assert ours.provenance["license"] == "cc-by-4.0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_token": False, "global_pool": "avg"}, "its last norm follows the pool"),
        ({"reg_tokens": 4, "no_embed_class": True}, "it has register tokens"),
        ({"qk_norm": True}, "it normalises queries and keys"),
        ({"pre_norm": True}, "give --arch NAME"),
        ({"pos_embed": "none"}, "'pos_embed' is missing"),
    ],
)
def test_what_our_tower_lacks_is_named(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = saved(VisionTransformer(**SMALL | changes), tmp_path / "w.bin")
    assert message in refused(capsys, source, "timm", tmp_path / "m")


def test_the_wrong_architecture_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = saved(VisionTransformer(**SMALL), tmp_path / "w.bin")
    for arch, message in (
        ("vit_tiny_patch16_224", "[64, 64] instead of [192, 192]"),
        ("vit_nano", "timm knows no such model"),
        ("resnet18", "a ResNet; only plain Vision Transformers"),
        ("vit_base_patch16_224.mae", "[64, 64] instead of [768, 768]"),
        ("vit_base_patch16_224.no_such_tag", "timm cannot build it"),
    ):
        assert message in refused(capsys, source, "timm", tmp_path / "m", "--arch", arch)
    assert "not a multiple" in refused(capsys, source, "timm", tmp_path / "m", "--heads", "5")
    assert "--text has no meaning" in refused(capsys, source, "timm", tmp_path / "m", "--text", "x")


MEAN, STD = (0.11, 0.22, 0.33), (0.44, 0.55, 0.66)


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
    cfg = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "crop_pct": 0.9} | said
    found, notes = from_timm.preprocess_of(cfg)
    assert found == wanted
    assert notes == ["timm evaluates on the central 90%; here the whole short side is used"]


def test_timm_preprocess_of_a_published_architecture_with_unequal_mean_and_std() -> None:
    """The values of ImageNet, which timm keeps for augreg-free weights: none of them is a half."""
    model, cfg = from_timm.describe("deit_tiny_patch16_224")
    data = timm.data.resolve_data_config({}, model=model)
    found, _ = from_timm.preprocess_of(cfg)
    assert (found.mean, found.std) == (data["mean"], data["std"]) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert found.interpolation == data["interpolation"] == "bicubic"
    assert from_timm.preprocess_of(None)[0] == PreprocessConfig(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
