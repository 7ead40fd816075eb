"""Image towers written as timm's folders: timm computes and prepares images as the model folder does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from kit.exports import IMAGES, PHOTO, assert_model_refused, assert_same_features, export_model
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from flexiclip import load_model
from flexiclip.__main__ import main
from flexiclip.config import ImageTowerConfig
from flexiclip.errors import UserError
from flexiclip.formats.timm_writer import config_of, registered_name, tower_state
from flexiclip.model_folder import LoadedModel
from flexiclip.models.exits import bake
from flexiclip.models.flexivit import FlexiViT


@pytest.mark.parametrize("name", ["ours", "clip", "siglip"])
@torch.no_grad()
def test_export_to_timm_gives_the_same_features(
    name: str, folders: dict[str, Path], opened: dict[str, LoadedModel], tmp_path: Path
) -> None:
    assert export_model(folders[name], "timm", tmp_path / "m", "--seqhw", "3") == 0
    theirs = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval()
    assert theirs.patch_embed.patch_size == (16, 16)
    assert_same_features(theirs(IMAGES), opened[name].model.encode_image(IMAGES, 3))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
    assert_same_features(transform(PHOTO), opened[name].transform(PHOTO))


@torch.no_grad()
def test_timm_gets_a_patch_bias_before_a_norm_and_unequal_mean_and_std(biased: Path, tmp_path: Path) -> None:
    assert export_model(biased, "timm", tmp_path / "m", "--seqhw", "4") == 0
    loaded = load_model(biased)
    assert loaded.model.image_tower.bias is not None
    assert float(loaded.model.image_tower.bias.abs().max()) > 0.1
    theirs = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval()
    assert_same_features(theirs(IMAGES), loaded.model.encode_image(IMAGES, 4))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
    assert_same_features(transform(PHOTO), loaded.transform(PHOTO))


@pytest.mark.parametrize("name", ["flexivit_small", pytest.param("vit_tiny_patch16_224", marks=pytest.mark.slow)])
@torch.no_grad()
def test_timm_in_and_out(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=0).eval()
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    source = ["import", str(tmp_path / "w.safetensors"), "--format", "timm", "--arch", name]
    assert main([*source, "--output", str(tmp_path / "m")]) == 0
    assert export_model(tmp_path / "m", "timm", tmp_path / "out") == 0
    back = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = torch.randn(2, 3, *theirs.patch_embed.img_size)
    assert_same_features(back(images), theirs(images))


def test_config_of_says_everything_that_timm_needs(opened: dict[str, LoadedModel]) -> None:
    """CLIP's small model at seqhw 8, whose settings are those of kit/export_models.py."""
    loaded = opened["clip"]
    said: Any = config_of(bake(loaded.model.image_tower, 8), loaded, 24)
    arguments = said["model_args"]
    assert said["architecture"] == "vit_base_patch16_clip_224", "its norms have the epsilon 1e-5"
    assert (said["num_classes"], said["num_features"], said["global_pool"]) == (24, 32, "token")
    assert (arguments["img_size"], arguments["patch_size"]) == (48, 6)
    assert (arguments["embed_dim"], arguments["depth"], arguments["num_heads"], arguments["mlp_ratio"]) == (32, 2, 4, 4)
    assert (arguments["class_token"], arguments["pre_norm"], arguments["act_layer"]) == (True, True, "quick_gelu")
    pretrained = said["pretrained_cfg"]
    assert (pretrained["input_size"], pretrained["crop_pct"], pretrained["crop_mode"]) == ([3, 48, 48], 1.0, "center")
    assert (pretrained["mean"], pretrained["std"], pretrained["interpolation"]) == ([0.5] * 3, [0.5] * 3, "bicubic")


@pytest.mark.parametrize("name", ["ours", "clip", "siglip"])
def test_tower_state_has_the_names_and_shapes_of_timm(name: str, opened: dict[str, LoadedModel]) -> None:
    """timm's own class, built by hand with the sizes of the small models at seqhw 4."""
    tower = bake(opened[name].model.image_tower, 4)
    pool = {"ours": "avg", "clip": "token", "siglip": "map"}[name]
    theirs = VisionTransformer(
        img_size=48,
        patch_size=12,
        embed_dim=32,
        depth=2,
        num_heads=4,
        num_classes=0,
        class_token=pool == "token",
        global_pool=pool,
        no_embed_class=True,
        fc_norm=False,
        pre_norm=name == "clip",
    )
    shapes = {key: tensor.shape for key, tensor in tower_state(tower).items()}
    assert shapes == {key: tensor.shape for key, tensor in theirs.state_dict().items()}


def test_registered_name_is_that_of_an_equal_siglip_tower() -> None:
    """SigLIP's ViT-B/16 at 224 px, on the meta device. No shape shows the settings that are changed one by one."""
    siglip = ImageTowerConfig(
        variant="B", image_size=224, base_patch_size=16, base_grid=14, pool="map", activation="gelu", projection="none"
    )

    def name_of(**changes: Any) -> str | None:
        with torch.device("meta"):
            tower = FlexiViT(replace(siglip, **changes))
        return registered_name(tower)

    assert name_of() == "vit_base_patch16_siglip_224"
    assert name_of(pool="gap") == "vit_base_patch16_siglip_gap_224"
    for changes in ({"activation": "quick_gelu"}, {"heads": 6}, {"norm_eps": 1e-5}, {"depth": 11}, {"pool": "tok"}):
        assert name_of(**changes) is None, changes
    assert name_of(image_size=(224, 112), base_grid=(14, 7)) is None
    assert name_of(base_patch_size=(16, 8), base_grid=(14, 28)) is None


def test_write_timm_refuses_an_epsilon_that_no_architecture_has(
    make: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make("siglip", image={"norm_eps": 1e-3})
    assert_model_refused(folder, "timm", "norm_eps=0.001", tmp_path / "m.npz", capsys)
    loaded = load_model(folder)
    with pytest.raises(UserError, match=r"norm_eps=0\.001, and timm's architectures have 1e-06 or 1e-05"):
        config_of(bake(loaded.model.image_tower, 3), loaded, 0)
