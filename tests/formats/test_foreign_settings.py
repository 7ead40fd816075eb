"""Settings of foreign models that no tensor's shape shows, each away from its default: the same features as the library's own.

A reader that took a default for what the model says would fail here: activation, epsilon, heads, norms, biases, pools, masks.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from kit.golden import largest_difference
from kit.weights import CAPTIONS, images, imported, perturbed, refused, vocabulary
from safetensors.torch import save_file
from test_open_clip_reader import NATIVE, SIGLIP_TEXT, TEXT, assert_equal, folder_of
from test_transformers_reader import TEXT as HF_TEXT
from test_transformers_reader import VISION, features, saved
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import nn

SMALL = {"img_size": 48, "patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 4, "num_classes": 0}
MAP = {"class_token": False, "global_pool": "map"}


def tiny_for_tests(pretrained: bool = False, **options: Any) -> VisionTransformer:
    """An architecture that timm.create_model builds by this function's name, with what a folder's model_args add."""
    taken = {key: value for key, value in options.items() if key not in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")}
    if taken.get("norm_layer") == "loose":
        taken["norm_layer"] = functools.partial(nn.LayerNorm, eps=0.01)
    if taken.get("block_fn") == "post":
        taken["block_fn"] = ResPostBlock
    odd = taken.pop("odd_head", None)
    model = VisionTransformer(**SMALL | taken)
    if odd == "activation":
        model.attn_pool.mlp.act = nn.GELU(approximate="tanh")
    elif odd == "epsilon":
        model.attn_pool.norm.eps = 0.1
    elif odd == "heads":
        model.attn_pool.num_heads = 2
    elif odd == "pool":
        model.attn_pool.pool = "avg"
    model.pretrained_cfg = {"mean": (0.3, 0.4, 0.5), "std": (0.5, 0.6, 0.7), "interpolation": "bicubic", "crop_pct": 1.0}
    return model


timm.models.register_model(tiny_for_tests)


def timm_folder(folder: Path, model_args: dict[str, Any], **cfg: Any) -> VisionTransformer:
    """A folder as timm pushes it to a hub, whose config.json changes the architecture and the preprocessing; and its model."""
    theirs = perturbed(tiny_for_tests(**model_args))
    folder.mkdir(exist_ok=True)
    save_file(theirs.state_dict(), folder / "model.safetensors")
    said = {"architecture": "tiny_for_tests", "model_args": model_args, "pretrained_cfg": cfg}
    (folder / "config.json").write_text(json.dumps(said))
    return theirs


@pytest.mark.parametrize(
    "model_args",
    [
        {},
        {"act_layer": "quick_gelu"},
        {"act_layer": "gelu_tanh"},
        {"norm_layer": "loose"},
        {"num_heads": 2},
        {"pre_norm": True, "act_layer": "quick_gelu", "norm_layer": "loose"},
        {"init_values": 0.3, "qkv_bias": False},
        {"no_embed_class": True},
        {**MAP, "act_layer": "gelu_tanh", "norm_layer": "loose", "num_heads": 8},
        {"class_token": False, "global_pool": "avg", "fc_norm": False, "act_layer": "gelu_tanh"},
        {"num_classes": 5, "drop_rate": 0.5, "proj_drop_rate": 0.5, "drop_path_rate": 0.5},
    ],
    ids=str,
)
@torch.no_grad()
def test_timm_settings_of_a_folder(model_args: dict[str, Any], tmp_path: Path) -> None:
    theirs = timm_folder(tmp_path / "hub", model_args)
    ours = imported(tmp_path / "hub", "timm", tmp_path / "m", "--image-size", "48")
    assert largest_difference(ours.model.encode_image(images(48), 3), theirs(images(48))) < 1e-5
    assert ours.config.model.image.heads == model_args.get("num_heads", 4)


def test_timm_preprocessing_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = {"mean": [0.1, 0.2, 0.3], "std": [0.7, 0.8, 0.9], "interpolation": "bilinear", "crop_mode": "squash", "crop_pct": 0.9}
    timm_folder(tmp_path / "hub", {}, **cfg)
    ours = imported(tmp_path / "hub", "timm", tmp_path / "m").config.model.preprocess
    assert (ours.mean, ours.std, ours.interpolation, ours.resize) == ((0.1, 0.2, 0.3), (0.7, 0.8, 0.9), "bilinear", "squash")
    assert "timm evaluates on the central 90%" in capsys.readouterr().out
    timm_folder(tmp_path / "hub", {})
    ours = imported(tmp_path / "hub", "timm", tmp_path / "plain").config.model.preprocess
    assert (ours.mean, ours.std, ours.interpolation, ours.resize) == ((0.3, 0.4, 0.5), (0.5, 0.6, 0.7), "bicubic", "shortest")
    for change, message in (
        ({"interpolation": "lanczos"}, "with the filter 'lanczos'"),
        ({"interpolation": "random"}, "with the filter 'random'"),
        ({"crop_mode": "border"}, "images by 'border'"),
    ):
        timm_folder(tmp_path / "hub", {}, **change)
        assert message in refused(capsys, tmp_path / "hub", "timm", tmp_path / "x")


@pytest.mark.parametrize(
    ("model_args", "message"),
    [
        ({"block_fn": "post"}, "blocks of ResPostBlock"),
        *(({**MAP, "odd_head": part}, "its MAP head") for part in ("activation", "epsilon", "heads", "pool")),
        ({"act_layer": "relu"}, "its activation ReLU is none of"),
        ({"global_pool": "avg", "fc_norm": False}, "it pools 'avg'"),
        ({"class_token": False, "global_pool": "max", "fc_norm": False}, "it pools 'max'"),
        ({"scale_attn_norm": True}, "without a place in the tower: blocks.0.attn.norm"),
        ({"scale_mlp_norm": True}, "without a place in the tower: blocks.0.mlp.norm"),
        ({"qk_norm": True}, "it normalises queries and keys"),
        ({"reg_tokens": 2, "no_embed_class": True}, "it has register tokens"),
        ({"proj_bias": False}, "blocks.0.attn.proj.bias' is missing"),
        ({"no_such_argument": 1}, "timm cannot build it"),
        ({"depth": 10**9}, "the most are 1000"),
    ],
    ids=str,
)
def test_timm_settings_that_our_tower_lacks(
    model_args: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    buildable = {} if "depth" in model_args or "no_such_argument" in model_args else model_args
    timm_folder(tmp_path / "hub", buildable)
    said = {"architecture": "tiny_for_tests", "model_args": model_args}
    (tmp_path / "hub" / "config.json").write_text(json.dumps(said))
    assert message in refused(capsys, tmp_path / "hub", "timm", tmp_path / "m")


@pytest.mark.parametrize(
    ("whole", "vision", "text"),
    [
        ({}, {"norm_kwargs": {"eps": 0.01}}, {"norm_kwargs": {"eps": 0.02}}),
        ({}, {"act_kwargs": {"approximate": "tanh"}}, {}),
        ({}, {}, {"act_kwargs": {"approximate": "tanh"}, "heads": 4}),
        ({"quick_gelu": True}, {"mlp_ratio": 3.0}, {"mlp_ratio": 2.0}),
        ({}, {"head_width": 16, "ls_init_value": 0.2}, {"ls_init_value": 0.3, "heads": 2}),
        ({}, {}, {"no_causal_mask": True, "pool_type": "last", "context_length": 12, "vocab_size": 60}),
        ({}, {}, {"pool_type": "eos", "eos_id": 49407, "proj_bias": True}),
        ({}, {}, {"proj_type": "none", "width": 24, "heads": 2}),
        ({"init_logit_scale": 1.5, "init_logit_bias": -3.0}, {}, {}),
        ({}, {"patch_dropout": 0.5, "final_ln_after_pool": True}, {"final_ln_after_pool": True}),
        ({}, {"pos_embed_type": "sin_cos_2d"}, {}),
    ],
    ids=str,
)
def test_import_of_open_clip_keeps_every_setting(
    whole: dict[str, Any], vision: dict[str, Any], text: dict[str, Any], tmp_path: Path
) -> None:
    model_cfg = {"embed_dim": 24, "vision_cfg": NATIVE | vision, "text_cfg": TEXT | text, **whole}
    theirs = folder_of(model_cfg, tmp_path / "oc")
    options = ("--text", vocabulary(tmp_path / "sp.model")) if "vocab_size" in text else ()
    ours = imported(f"local-dir:{tmp_path / 'oc'}", "open_clip", tmp_path / "m", *options)
    assert_equal(ours, theirs)
    assert ours.config.model.text is not None
    assert ours.config.model.text.kind == "transformer"


@pytest.mark.parametrize(
    "text",
    [
        {"pool_type": "first"},
        {"embed_cls": True},
        {"pool_type": "last"},  # beside a causal mask
        {"qk_norm": True},
    ],
    ids=str,
)
def test_open_clip_text_settings_that_ours_lacks_keep_open_clips_own(text: dict[str, Any], tmp_path: Path) -> None:
    theirs = folder_of({"embed_dim": 24, "vision_cfg": NATIVE, "text_cfg": TEXT | text}, tmp_path / "oc")
    ours = imported(f"local-dir:{tmp_path / 'oc'}", "open_clip", tmp_path / "m")
    assert ours.config.model.text is not None
    assert ours.config.model.text.kind == "open_clip"
    assert_equal(ours, theirs)


def test_open_clip_image_settings_that_ours_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = {"embed_dim": 24, "vision_cfg": NATIVE, "text_cfg": TEXT}
    timm_vision = {"image_size": 224, "timm_model_name": "vit_tiny_patch16_224", "timm_proj": "mlp", "timm_pool": ""}
    for number, (change, said, message) in enumerate(
        (
            ({}, {"interpolation": "nearest"}, "the filter 'nearest'"),
            ({}, {"interpolation": "random"}, "the filter 'random'"),
            ({}, {"resize_mode": "longest"}, "it resizes images by 'longest'"),
            ({"vision_cfg": NATIVE | {"pool_type": "avg"}}, {}, "the pool 'avg'"),
            ({"vision_cfg": NATIVE | {"scale_heads": True}}, {}, "blocks of CustomResidualAttentionBlock"),
            ({"vision_cfg": timm_vision}, {}, "without a place in the tower: mlp."),
        )
    ):
        folder_of(base | change, tmp_path / f"oc{number}", **said)
        assert message in refused(capsys, f"local-dir:{tmp_path / f'oc{number}'}", "open_clip", tmp_path / "m")


@torch.no_grad()
def test_siglip_of_open_clip_through_timm_has_the_settings_of_each_half(tmp_path: Path) -> None:
    """Here the text half has the exact GELU, another epsilon than the image half, and no bias in its projection."""
    vision = {
        "image_size": 224,
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_pool": "",
        "timm_proj": "linear",
        "timm_proj_bias": True,
    }
    text = {key: value for key, value in SIGLIP_TEXT.items() if key != "act_kwargs"} | {
        "norm_kwargs": {"eps": 0.03},
        "proj_bias": False,
    }
    model_cfg = {"embed_dim": 192, "init_logit_bias": -10, "vision_cfg": vision, "text_cfg": text}
    theirs = folder_of(model_cfg, tmp_path / "oc")
    assert_equal(
        imported(f"local-dir:{tmp_path / 'oc'}", "open_clip", tmp_path / "m", "--text", vocabulary(tmp_path / "s.model")), theirs
    )


@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize(
    ("vision", "text"),
    [
        ({"hidden_act": "gelu"}, {"hidden_act": "quick_gelu"}),
        ({"hidden_act": "quick_gelu"}, {"hidden_act": "gelu_pytorch_tanh"}),
        ({"hidden_act": "gelu_new"}, {"hidden_act": "gelu"}),
        ({"layer_norm_eps": 0.01}, {"layer_norm_eps": 0.03}),
        ({"num_attention_heads": 8}, {"num_attention_heads": 6}),
        ({"attention_dropout": 0.5}, {"attention_dropout": 0.5}),
        ({"num_hidden_layers": 1, "intermediate_size": 40}, {"num_hidden_layers": 3, "intermediate_size": 56}),
    ],
    ids=str,
)
@torch.no_grad()
def test_import_of_transformers_keeps_every_setting(
    family: str, vision: dict[str, Any], text: dict[str, Any], tmp_path: Path
) -> None:
    settings = {"vision_config": VISION | vision, "text_config": HF_TEXT | {"eos_token_id": 59} | text}
    theirs: Any
    if family == "clip":
        theirs = transformers.CLIPModel(transformers.CLIPConfig(**settings, projection_dim=32))
    else:
        settings["text_config"] |= {"projection_size": 64}
        theirs = transformers.SiglipModel(transformers.SiglipConfig(**settings))
    theirs = saved(theirs, tmp_path / "hf")
    ours = imported(tmp_path / "hf", "transformers", tmp_path / "m")
    tokens = ours.tokenizer(CAPTIONS)
    assert largest_difference(ours.model.encode_image(images(48)), features(theirs.get_image_features(images(48)))) < 1e-5
    assert largest_difference(ours.model.encode_text(tokens), features(theirs.get_text_features(tokens))) < 1e-5
    assert float(ours.model.logit_scale) == float(theirs.logit_scale)
    if family == "siglip":
        assert float(ours.model.logit_bias) == float(theirs.logit_bias)


@pytest.mark.parametrize("half", ["vision_config", "text_config"])
def test_transformers_activations_that_ours_lacks(half: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"vision_config": dict(VISION), "text_config": HF_TEXT | {"eos_token_id": 59}}
    settings[half]["hidden_act"] = "relu"
    saved(transformers.CLIPModel(transformers.CLIPConfig(**settings, projection_dim=32)), tmp_path / "hf")
    assert "its activation relu is none of quick_gelu" in refused(capsys, tmp_path / "hf", "transformers", tmp_path / "m")
