"""`init: MODEL` at the top of a recipe: the run starts as the model that it names, of whatever library, with its temperature."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch

import flexiclip
from flexiclip.commands import load_recipe
from flexiclip.config import Config, dump, from_dict, load
from flexiclip.data.tokenizers import train_sentencepiece
from flexiclip.errors import UserError
from flexiclip.formats.initial import open_initial
from flexiclip.model_folder import LoadedModel, build_model, save_model

CAPTIONS = ["a red fox", "two dogs", "an old map of the city", "rain"]
IMAGES = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(1))
SMALL = {"width": 32, "depth": 2, "heads": 2}
OPEN_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 48, "patch_size": 16, "layers": 2, "width": 64, "head_width": 32},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    """A recipe that says only what a fine-tuning has to say."""
    path = tmp_path / "finetune.yaml"
    path.write_text("init: model\npatch: {seqhw: [2, 3, 4, 6]}\n")
    return str(path)


def made(folder: Path, **model: Any) -> LoadedModel:
    """A model folder whose weights and temperature are far from what a new model has."""
    vocabulary = train_sentencepiece(CAPTIONS, folder.parent / "gone" / "words.model", 40, lowercase=True)
    sections = {
        "image": {**SMALL, "image_size": 48, "base_patch_size": 16, "base_grid": 3, "activation": "quick_gelu"},
        "text": {**SMALL, "lock": False, "causal": True, "pad_mask": False},
        "embed_dim": 24,
        "preprocess": {"mean": [0.48, 0.46, 0.41], "resize": "squash"},
        **model,
    }
    tokenizer = {"path": str(vocabulary), "context_length": 10}
    loaded = build_model(from_dict(Config, {"model": sections, "tokenizer": tokenizer, "patch": {"seqhw": [3]}}))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in loaded.model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
        loaded.model.logit_scale.fill_(math.log(93.7))
    save_model(folder, loaded)
    vocabulary.unlink()
    return loaded


def started(recipe: str, *overrides: str) -> LoadedModel:
    """The model of a run at its start."""
    return build_model(load_recipe(recipe, overrides), open_model=open_initial)


def same(ours: LoadedModel, theirs: LoadedModel) -> bool:
    state = theirs.model.state_dict()
    assert ours.model.state_dict().keys() == state.keys()
    return all(torch.equal(tensor, state[name]) for name, tensor in ours.model.state_dict().items())


@pytest.mark.parametrize("bias", [None, -12.9])
def test_a_model_folder_fills_all_that_the_recipe_leaves_out(bias: float | None, recipe: str, tmp_path: Path) -> None:
    """Beside the recipe, and not where we are; its tokenizer is in the folder, for the training's own is gone."""
    theirs = made(tmp_path / "model", logit_bias_init=bias)
    ours = started(recipe)
    assert same(ours, theirs), "weights, projections, scale and bias, bit for bit"
    assert ours.provenance == {}, "nothing had to be resized or said"
    assert ours.tokenizer.fingerprint() == theirs.tokenizer.fingerprint()
    assert ours.config.model.preprocess == theirs.config.model.preprocess
    assert ours.config.patch.seqhw == (2, 3, 4, 6)
    assert ours.config.loss.kind == ("softmax" if bias is None else "sigmoid")
    assert ours.model.logit_scale.exp().item() == pytest.approx(93.7)
    assert ours.config.init == str(tmp_path / "model")


def test_the_keys_of_the_recipe_replace_what_is_filled_in(recipe: str, tmp_path: Path) -> None:
    theirs = made(tmp_path / "model").model
    ours = started(recipe, "model.logit_scale_init=20", "model.image.base_patch_size=8", "model.text.init=null").model
    assert ours.logit_scale.item() == pytest.approx(math.log(20))
    assert ours.image_tower.kernel.shape[-1] == 8, "PI-resized"
    assert torch.equal(ours.image_projection.weight, theirs.image_projection.weight)
    assert not torch.equal(ours.text_projection.weight, theirs.text_projection.weight)
    locked = started(recipe, "model.text.lock=true").config.model
    assert (locked.text_frozen, locked.image.frozen) == (True, False)
    for override, message in {
        "model.image.activation=gelu": "its tower was trained with activation=quick_gelu",
        "model.preprocess.mean=[0.5, 0.5, 0.5]": "images normalised by mean=",
        "tokenizer.lowercase=false": "trained with another tokenizer",
        "patch.seqhw=[5]": "do not divide model.image.image_size=48",
    }.items():
        with pytest.raises(UserError, match=message):
            started(recipe, override)


@torch.no_grad()
def test_a_model_of_open_clip_starts_as_open_clip_runs_it(recipe: str, tmp_path: Path) -> None:
    """A folder as open_clip writes it; its own towers, tokenizer, image preparation and temperature."""
    theirs = open_clip.CustomTextCLIP(**OPEN_CLIP, init_logit_scale=math.log(88.8)).eval()
    folder = tmp_path / "model"
    folder.mkdir()
    colours = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "interpolation": "bilinear"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": OPEN_CLIP, "preprocess_cfg": colours}))
    torch.save(theirs.state_dict(), folder / "open_clip_pytorch_model.bin")
    ours = started(recipe, f"init={folder}")
    model, tokens = ours.model.eval(), open_clip.get_tokenizer(f"local-dir:{folder}")(CAPTIONS)
    assert torch.equal(ours.tokenizer(CAPTIONS), tokens)
    assert float((model.encode_image(IMAGES) - theirs.encode_image(IMAGES)).abs().max()) < 1e-5
    assert float((model.encode_text(tokens) - theirs.encode_text(tokens)).abs().max()) < 1e-5
    assert torch.equal(model.logit_scale, theirs.logit_scale.reshape(1))
    assert (ours.config.model.preprocess.mean, ours.config.model.preprocess.std) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    with pytest.raises(UserError, match="trained with another tokenizer"):
        started(recipe, f"init={folder}", "tokenizer.context_length=12")


@torch.no_grad()
def test_an_image_tower_alone_gets_a_text_tower_from_the_recipe(recipe: str, tmp_path: Path) -> None:
    """A folder of timm, whose head is the projection."""
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=24, img_size=48, depth=2, class_token=True).eval()
    folder = tmp_path / "model"
    folder.mkdir()
    torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    arguments = {"img_size": 48, "depth": 2}
    described = {"architecture": "vit_tiny_patch16_224", "num_classes": 24, "model_args": arguments}
    pretrained = {"input_size": [3, 48, 48], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
    (folder / "config.json").write_text(json.dumps({**described, "pretrained_cfg": pretrained}))
    with pytest.raises(UserError, match=r"model\.text=null is an image tower alone"):
        load_recipe(recipe, [f"init={folder}"])
    words = train_sentencepiece(CAPTIONS, tmp_path / "words.model", 40, lowercase=True)
    text = ["model.text={width: 32, depth: 1, heads: 2}", f"tokenizer.path={words}"]
    ours = started(recipe, f"init={folder}", *text)
    assert float((ours.model.eval().encode_image(IMAGES) - theirs(IMAGES)).abs().max()) < 1e-5
    assert ours.model.logit_scale.exp().item() == pytest.approx(1 / 0.07), "an image tower has no temperature"


def test_what_cannot_be_opened_is_said(recipe: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^init=model is not a model: there is no such file or folder; give a model folder"):
        load_recipe(recipe)
    made(tmp_path / "model")
    with pytest.raises(UserError, match=r"call flexiclip\.load_recipe"):
        load(recipe)
    with pytest.raises(UserError, match=r"the ending \+exit1 is not accepted here"):
        load_recipe(recipe, [f"init={tmp_path / 'model'}+exit1"])
    assert flexiclip.load_recipe(recipe).init == str(tmp_path / "model")


def test_lengths_are_filled_in_where_the_recipe_names_none(tmp_path: Path) -> None:
    """Those of the training, or around a single one all from half to double of it that divide the image."""
    made(tmp_path / "model")
    init = [f"init={tmp_path / 'model'}"]
    assert load_recipe("finetune_clip", init).patch.seqhw == (2, 3, 4, 6), "around 3, of 48 pixels"
    flexible = build_model(load_recipe("finetune_clip", [*init, "patch.seqhw=[3, 8, 12]"]), open_model=open_initial)
    save_model(tmp_path / "flexible", flexible)
    assert load_recipe("finetune_clip", [f"init={tmp_path / 'flexible'}"]).patch.seqhw == (3, 8, 12)


def test_two_halves_of_one_model_keep_their_temperature(tmp_path: Path) -> None:
    """A recipe of before `init`, which names a model twice and does not say the scale: it is taken, and said."""
    theirs = made(tmp_path / "run" / "model", logit_bias_init=-12.9)
    recipe, sigmoid = _settings(tmp_path, theirs), ["loss.kind=sigmoid", "model.logit_bias_init=-10"]
    halves = [f"model.image.init={tmp_path / 'run'}", f"model.text.init={tmp_path / 'run' / 'model'}"]
    assert build_model(load(recipe, sigmoid)).model.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    ours = build_model(load(recipe, [*sigmoid, *halves]))
    assert same(ours, theirs)
    scale, bias = ours.provenance["init_notes"]
    taken = "as in the model of both towers, in place of"
    assert scale == f"logit_scale starts at 93.7, {taken} 14.29 (model.logit_scale_init)"
    assert bias == f"logit_bias starts at {theirs.model.logit_bias.item():.4g}, {taken} -10 (model.logit_bias_init)"
    low = build_model(load(recipe, [*sigmoid, *halves, "model.logit_scale_max=50"]))
    assert low.model.logit_scale.exp().item() == pytest.approx(50)
    one = build_model(load(recipe, [*sigmoid, halves[0]]))
    assert one.model.logit_scale.exp().item() == pytest.approx(1 / 0.07), "one half alone has no temperature"


def _settings(tmp_path: Path, loaded: LoadedModel) -> Path:
    """A recipe with the architecture of a model, written out."""
    model = replace(loaded.config.model, logit_scale_init=1 / 0.07, logit_bias_init=None)
    tokenizer = replace(loaded.config.tokenizer, path=str(tmp_path / "run" / "model" / "tokenizer"))
    path = tmp_path / "halves.yaml"
    path.write_text(dump(replace(loaded.config, model=model, tokenizer=tokenizer)))
    return path
