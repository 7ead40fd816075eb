"""open_clip models through `flexiclip import`: both towers, tokenizer and preprocessing against open_clip called directly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from kit.golden import largest_difference
from kit.weights import CAPTIONS, images, imported, perturbed, refused, vocabulary
from safetensors.torch import save_file

from flexiclip.config import PreprocessConfig
from flexiclip.formats import open_clip_reader as from_open_clip
from flexiclip.model_folder import LoadedModel

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
NATIVE = {"image_size": 48, "patch_size": 16, "layers": 2, "width": 64, "head_width": 32}
SIGLIP_TEXT = TEXT | {
    "context_length": 12,
    "vocab_size": 60,
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
    "act_kwargs": {"approximate": "tanh"},
}


def folder_of(model_cfg: dict[str, Any], folder: Path, **preprocess: Any) -> open_clip.CustomTextCLIP:
    """A folder that open_clip reads as local-dir, and its model: an architecture of two blocks."""
    settings = {key: value for key, value in model_cfg.items() if key != "custom_text"}
    model = perturbed(open_clip.CustomTextCLIP(**json.loads(json.dumps(settings))))
    folder.mkdir()
    said = {"model_cfg": {"custom_text": True, **model_cfg}, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(said))
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return model


@torch.no_grad()
def assert_equal(ours: LoadedModel, theirs: Any) -> None:
    size = ours.config.model.image.image_size
    batch, tokens = images(size), ours.tokenizer([*CAPTIONS, "a caption that goes on " * 30])  # type: ignore[arg-type]
    assert largest_difference(ours.model.encode_image(batch), theirs.encode_image(batch)) < 1e-5
    assert largest_difference(ours.model.encode_text(tokens), theirs.encode_text(tokens)) < 1e-5
    assert float(ours.model.logit_scale) == float(theirs.logit_scale)
    assert (ours.model.logit_bias is None) == (theirs.logit_bias is None)
    if ours.model.logit_bias is not None:
        assert float(ours.model.logit_bias) == float(theirs.logit_bias)


@pytest.mark.parametrize(
    ("vision", "quick_gelu"),
    [({}, False), ({}, True), ({"ls_init_value": 0.4, "mlp_ratio": 2.0}, False), ({"no_ln_pre": True}, False)],
    ids=["clip", "quickgelu", "layer scale", "no pre-norm"],
)
def test_import_of_open_clips_native_towers(vision: dict[str, Any], quick_gelu: bool, tmp_path: Path) -> None:
    model_cfg = {"embed_dim": 24, "quick_gelu": quick_gelu, "vision_cfg": NATIVE | vision, "text_cfg": TEXT}
    theirs = folder_of(
        model_cfg, tmp_path / "oc", mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], interpolation="bilinear", resize_mode="squash"
    )
    (tmp_path / "oc" / "README.md").write_text("---\nlicense: mit\n---\n")
    ours = imported(f"local-dir:{tmp_path / 'oc'}", "open_clip", tmp_path / "m")
    assert_equal(ours, theirs)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'oc'}")
    assert torch.equal(ours.tokenizer(CAPTIONS), tokenizer(CAPTIONS))
    config = ours.config.model
    assert config.text is not None
    assert (config.image.pre_norm, config.image.heads) == ("no_ln_pre" not in vision, 2)
    assert (config.text.kind, config.text.causal, config.text.activation) == (
        "transformer",
        True,
        "quick_gelu" if quick_gelu else "gelu",
    )
    assert config.text.eos_id == 49407, "open_clip pools at the largest id, which is the tokenizer's EOS"
    preprocess = config.preprocess
    assert (preprocess.mean, preprocess.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (preprocess.interpolation, preprocess.resize) == ("bilinear", "squash")
    assert ours.provenance["license"] == "mit"
    assert config.image.lock is False
    assert ours.model.text_tower.trims, "a causal text needs no padding"


def test_siglip_through_timm(tmp_path: Path) -> None:
    vision = {"image_size": 224, "timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear"}
    model_cfg = {"embed_dim": 192, "init_logit_bias": -10, "vision_cfg": vision, "text_cfg": SIGLIP_TEXT}
    theirs = folder_of(model_cfg, tmp_path / "oc")
    spm = vocabulary(tmp_path / "sp.model")
    ours = imported(f"local-dir:{tmp_path / 'oc'}", "open_clip", tmp_path / "m", "--text", spm)
    assert_equal(ours, theirs)
    text = ours.config.model.text
    assert text is not None
    assert (text.causal, text.pad_mask, text.pool, text.activation) == (False, False, "last", "gelu_tanh")
    assert ours.tokenizer(["a red fox"])[0, -1] == ours.tokenizer.eos_id, "big_vision's sticky EOS"


def test_a_text_tower_that_is_not_clips_stays_open_clips(tmp_path: Path) -> None:
    model_cfg = {"embed_dim": 24, "vision_cfg": NATIVE, "text_cfg": TEXT | {"embed_cls": True}}
    theirs = folder_of(model_cfg, tmp_path / "oc")
    ours = imported(f"local-dir:{tmp_path / 'oc'}", "open_clip", tmp_path / "m")
    assert ours.config.model.text is not None
    assert ours.config.model.text.kind == "open_clip"
    assert_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-quickgelu", "ViT-B-16-SigLIP"])
def test_import_of_open_clips_published_models(name: str, tmp_path: Path) -> None:
    siglip = "SigLIP" in name
    theirs = perturbed(open_clip.create_model(name), 0.02)
    save_file({key: tensor.contiguous() for key, tensor in theirs.state_dict().items()}, tmp_path / "w.safetensors")
    options = ["--text", str(vocabulary(tmp_path / "sp.model"))] if siglip else []
    ours = imported(f"{name}/{tmp_path / 'w.safetensors'}", "open_clip", tmp_path / "m", *options)
    assert_equal(ours, theirs)
    if not siglip:
        assert torch.equal(ours.tokenizer(CAPTIONS), open_clip.get_tokenizer(name)(CAPTIONS))
    expected = (0.5, 0.5, 0.5) if siglip else open_clip.OPENAI_DATASET_MEAN
    assert ours.config.model.preprocess.mean == expected, "as all published weights of the name"
    assert ours.config.model.preprocess.resize == ("squash" if siglip else "shortest")


def test_what_cannot_be_imported_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "m"

    def built(model_cfg: dict[str, Any], name: str) -> str:
        folder_of(model_cfg, tmp_path / name)
        return refused(capsys, f"local-dir:{tmp_path / name}", "open_clip", target)

    base = {"embed_dim": 24, "vision_cfg": NATIVE, "text_cfg": TEXT}
    assert "an attention pool" in built(base | {"vision_cfg": NATIVE | {"attentional_pool": True}}, "coca")
    assert "the pool 'avg' next to a class token" in built(base | {"vision_cfg": NATIVE | {"pool_type": "avg"}}, "avg")
    resnet = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64}
    assert "only Vision Transformers" in built(base | {"vision_cfg": resnet}, "rn")
    assert "images by 'longest'" in _resized_oddly(base, tmp_path / "longest", target, capsys)
    weights = tmp_path / "coca" / "open_clip_pytorch_model.bin"
    for source, options, message in (
        ("ViT-B-32", (), "NAME/PRETRAINED"),
        ("ViT-Z-1/openai", (), "knows no model 'ViT-Z-1'"),
        ("ViT-B-32/no_such_tag", (), "open_clip cannot load it"),
        ("ViT-B-32/openai", (), "the other GELU; name ViT-B-32-quickgelu/openai"),
        (str(weights), (), "give --arch NAME"),
        (str(weights), ("--arch", "ViT-S-32-alt"), "is it another NAME?"),
        ("ViT-B-32/openai", ("--heads", "3"), "--heads has no meaning"),
    ):
        assert message in refused(capsys, source, "open_clip", target, *options)


def _resized_oddly(base: dict[str, Any], folder: Path, target: Path, capsys: pytest.CaptureFixture[str]) -> str:
    folder_of(base, folder, resize_mode="longest")
    return refused(capsys, f"local-dir:{folder}", "open_clip", target)


MEAN, STD = (0.11, 0.22, 0.33), (0.44, 0.55, 0.66)


def expected(resize: str = "shortest", interpolation: str = "bicubic") -> PreprocessConfig:
    return PreprocessConfig(mean=MEAN, std=STD, resize=resize, interpolation=interpolation)  # type: ignore[arg-type]


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
    found = from_open_clip._preprocess(own | published, "w")
    assert found == wanted


def test_open_clip_preprocess_of_published_weights_is_what_all_of_them_say() -> None:
    for name in ("ViT-B-16", "ViT-B-16-SigLIP"):
        tags = open_clip.list_pretrained_tags_by_model(name)
        found = from_open_clip._published_preprocess(name)
        for key in ("mean", "std", "interpolation", "resize_mode"):
            said = {json.dumps(open_clip.get_pretrained_cfg(name, tag).get(key)) for tag in tags}
            assert ({json.dumps(found[key])} if key in found else said) == said
            assert (key in found) == (len(said) == 1 and said != {"null"})
