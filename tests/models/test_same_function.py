"""`init` and every setting of a tower: a change is refused, or what the tower computes stays as it was."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from flexiclip.config import Config, ImageTowerConfig, TextTowerConfig, from_dict
from flexiclip.data.tokenizers import train_sentencepiece
from flexiclip.errors import UserError
from flexiclip.model_folder import LoadedModel, build_model, save_model

SIZES = {"width": 16, "depth": 2, "heads": 2}
IMAGE = {**SIZES, "image_size": 24, "base_patch_size": 8, "base_grid": 3}
WORDS = [f"a {colour} {thing}" for colour in ("red", "blue", "green") for thing in ("fox", "owl", "apple", "boat", "house")]
PIXELS = torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(0))
TOKENS = torch.tensor([[5, 9, 7, 2, 0, 0, 0], [6, 2, 0, 0, 0, 0, 0], [11, 8, 20, 7, 5, 9, 2]])

Outcome = str | None
"""What the refusal says; None: the tower computes what it computed; "elsewhere": the test that has it."""

REFUSED = "of another shape|missing|unused"  # the tensors themselves do not fit
IMAGE_FIELDS: dict[str, tuple[dict[str, Any], Outcome]] = {
    "variant": ({"variant": "Ti", "width": None}, REFUSED),
    "width": ({"width": 32}, REFUSED),
    "depth": ({"depth": 3}, REFUSED),
    "heads": ({"heads": 4}, "trained with heads="),
    "mlp_dim": ({"mlp_dim": 24}, REFUSED),
    "image_size": ({"image_size": 48}, None),
    "base_patch_size": ({"base_patch_size": 16}, "elsewhere: test_flexivit.py"),
    "base_grid": ({"base_grid": 4}, "elsewhere: test_flexivit.py"),
    "flexible": ({"flexible": "stride"}, "trained with flexible=patch"),
    "exits": ({"exits": (1,)}, None),
    "exit_heads": ({"exits": (1,), "exit_heads": "separate"}, REFUSED),
    "default_seqhw": ({"default_seqhw": 6}, None),
    "pool": ({"pool": "map"}, "trained with pool=gap"),
    "activation": ({"activation": "gelu"}, "trained with activation=gelu_tanh"),
    "norm_eps": ({"norm_eps": 1e-5}, "trained with norm_eps=1e-06"),
    "pre_norm": ({"pre_norm": True}, REFUSED),
    "patch_bias": ({"patch_bias": False}, REFUSED),
    "kernel_resize": ({"kernel_resize": "bicubic"}, "trained with kernel_resize=bilinear"),
    "kernel_antialias": ({"kernel_antialias": True}, "trained with kernel_antialias=False"),
    "grid_resize": ({"grid_resize": "bicubic"}, "trained with grid_resize=bilinear"),
    "grid_antialias": ({"grid_antialias": False}, "trained with grid_antialias=True"),
    "projection": ({"projection": "none"}, None),
    "projection_bias": ({"projection_bias": True}, None),
    "lock": ({"lock": True}, None),
    "unlock_last": ({"lock": True, "unlock_last": 1}, None),
    "init": ({}, None),
}
TEXT_FIELDS: dict[str, tuple[dict[str, Any], Outcome]] = {
    "kind": ({}, "elsewhere: test_init_compares_the_architectures_of_a_huggingface_tower"),
    "name": ({"name": "no effect on our own kind"}, None),
    "sha256": ({"sha256": "no effect on our own kind"}, None),
    "variant": ({"variant": "Ti", "width": None}, REFUSED),
    "width": ({"width": 32}, REFUSED),
    "depth": ({"depth": 3}, REFUSED),
    "heads": ({"heads": 4}, "trained with heads="),
    "mlp_dim": ({"mlp_dim": 24}, REFUSED),
    "vocab_size": ({"vocab_size": 99}, REFUSED),
    "pad_id": ({"pad_id": 7}, r"trained with pad_id=\d+; set"),
    "eos_id": ({"eos_id": 7}, r"trained with eos_id=\d+; set"),
    "context_length": ({"context_length": 20}, REFUSED),
    "causal": ({"causal": True}, "trained with causal=False"),
    "pad_mask": ({"pad_mask": False}, "trained with pad_mask=True"),
    "pool": ({"pool": "mean"}, "trained with pool=eos"),
    "activation": ({"activation": "quick_gelu"}, "trained with activation=gelu_tanh"),
    "norm_eps": ({"norm_eps": 1e-5}, "trained with norm_eps=1e-06"),
    "projection": ({"projection": "none"}, None),
    "projection_bias": ({"projection_bias": True}, None),
    "lock": ({"lock": True}, None),
    "unlock_last": ({"lock": True, "unlock_last": 1}, None),
    "init": ({}, None),
}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_sentencepiece(WORDS, tmp_path_factory.mktemp("spm") / "words.model", 60, lowercase=True)


def recipe(vocabulary: Path, image: dict[str, Any], text: dict[str, Any], seqhw: tuple[int, ...] = (2, 3, 6)) -> Config:
    data = {
        "model": {"image": {**IMAGE, **image}, "text": {**SIZES, **text}, "embed_dim": 16},
        "tokenizer": {"path": str(vocabulary), "context_length": 10},
        "patch": {"seqhw": list(seqhw)},
    }
    return from_dict(Config, data)


def moved(loaded: LoadedModel) -> LoadedModel:
    """With every parameter off its initial value: zero biases and ones hide what is left out."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in loaded.model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    loaded.model.eval()
    return loaded


@pytest.fixture(scope="module")
def trained(vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, Path]:
    loaded = moved(build_model(recipe(vocabulary, {}, {})))
    folder = tmp_path_factory.mktemp("trained") / "model"
    save_model(folder, loaded)
    return loaded, folder


def computed(loaded: LoadedModel, half: str) -> list[Tensor]:
    """What a tower gives, before its projection."""
    loaded.model.eval()
    with torch.no_grad():
        if half == "text":
            return [loaded.model.text_tower(TOKENS)]
        return [loaded.model.image_tower(PIXELS, seqhw) for seqhw in (2, 3, 6)]


@pytest.mark.parametrize(
    ("half", "name"), [*(("image", name) for name in IMAGE_FIELDS), *(("text", name) for name in TEXT_FIELDS)]
)
def test_init_refuses_a_setting_or_computes_the_same(
    half: str, name: str, trained: tuple[LoadedModel, Path], vocabulary: Path
) -> None:
    loaded, folder = trained
    changes, outcome = (IMAGE_FIELDS if half == "image" else TEXT_FIELDS)[name]
    section = {**changes, "init": str(folder)}
    config = recipe(vocabulary, section if half == "image" else {}, section if half == "text" else {})
    if outcome is not None and outcome.startswith("elsewhere"):
        assert ("init_notes" in build_model(config).provenance) == (half == "image")
    elif outcome is not None:
        with pytest.raises(UserError, match=rf"^model\.{half}\.init=.*({outcome})") as error:
            build_model(config)
        assert "\n" not in str(error.value)
    else:
        ours = build_model(config)
        assert all(map(torch.equal, computed(ours, half), computed(loaded, half)))
        assert not ours.provenance


def test_init_says_of_every_setting_what_it_does() -> None:
    """A setting that is new needs a row above."""
    assert IMAGE_FIELDS.keys() == {field.name for field in fields(ImageTowerConfig)}
    assert TEXT_FIELDS.keys() == {field.name for field in fields(TextTowerConfig)}


def test_init_with_separate_exits_takes_their_heads_or_refuses_others(vocabulary: Path, tmp_path: Path) -> None:
    """The norm, the pool and the projection of each exit; those of block 1 are none of block 2's."""
    exits = {"depth": 3, "exits": (1,), "exit_heads": "separate", "pool": "map"}
    theirs = moved(build_model(recipe(vocabulary, exits, {})))
    save_model(tmp_path / "m", theirs)
    ours = build_model(recipe(vocabulary, {**exits, "init": str(tmp_path / "m")}, {})).model
    names = {name for name in ours.state_dict() if "exit" in name}
    assert {name.split(".")[0] + "." + name.split(".")[1] for name in names} >= {"exit_projections.0", "image_tower.exit_norms"}
    for name in names:
        assert torch.equal(ours.state_dict()[name], theirs.model.state_dict()[name]), name
    with pytest.raises(UserError, match=r"trained with exits=\[1\]; set the same"):
        build_model(recipe(vocabulary, {**exits, "exits": (2,), "init": str(tmp_path / "m")}, {}))
    shared = {**exits, "exit_heads": "shared"}
    with pytest.raises(UserError, match=r"do not fit the model of the config \(unused: exit_"):
        build_model(recipe(vocabulary, {**shared, "init": str(tmp_path / "m")}, {}))


def test_init_takes_a_projection_of_the_same_form_alone(trained: tuple[LoadedModel, Path], vocabulary: Path) -> None:
    loaded, folder = trained
    config = recipe(vocabulary, {"init": str(folder)}, {"init": str(folder)})
    theirs = loaded.model.state_dict()
    for changes, taken in (({}, True), ({"embed_dim": 12}, False)):
        ours = build_model(replace(config, seed=3, model=replace(config.model, **changes))).model.state_dict()
        for half in ("image", "text"):
            name = f"{half}_projection.weight"
            assert (ours[name].shape == theirs[name].shape and torch.equal(ours[name], theirs[name])) == taken
    biased = replace(config.model, image=replace(config.model.image, projection_bias=True))
    fresh = build_model(replace(config, seed=3, model=biased)).model.image_projection
    assert not torch.equal(fresh.weight, theirs["image_projection.weight"])
    assert fresh.bias.tolist() == [0.0] * 16


BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 64}


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({}, None),
        ({"hidden_act": "gelu_new"}, "hidden_act=gelu,*; model.text.name is another architecture"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps=1e-12"),
        ({"num_attention_heads": 4}, "num_attention_heads=2"),
        ({"hidden_dropout_prob": 0.3}, None),
    ],
)
def test_init_compares_the_architectures_of_a_huggingface_tower(
    changes: dict[str, Any], refused: str | None, vocabulary: Path, tmp_path: Path
) -> None:
    towers = {}
    for name, settings in (("theirs", {}), ("ours", changes)):
        torch.manual_seed(len(name))
        transformers.BertModel(transformers.BertConfig(**BERT | settings, max_position_embeddings=12)).save_pretrained(
            tmp_path / name
        )
        towers[name] = {"kind": "huggingface", "name": str(tmp_path / name), "width": None, "depth": None, "heads": None}
    theirs = moved(build_model(recipe(vocabulary, {}, {**towers["theirs"], "pool": "mean"})))
    save_model(tmp_path / "m", theirs)
    config = recipe(vocabulary, {}, {**towers["ours"], "pool": "mean", "init": str(tmp_path / "m")})
    if refused is not None:
        with pytest.raises(UserError, match=refused):
            build_model(config)
        return
    with pytest.raises(UserError, match="trained with kind=huggingface"):
        build_model(recipe(vocabulary, {}, {"pool": "mean", "init": str(tmp_path / "m")}))
    assert all(map(torch.equal, computed(build_model(config), "text"), computed(theirs, "text")))


def test_init_compares_the_architectures_of_an_open_clip_tower(vocabulary: Path, tmp_path: Path) -> None:
    """ViT-B-32 and its quick GELU have one shape; here both small, by local folders."""
    import json

    from flexiclip.models.same_function import check_architecture
    from flexiclip.models.text.open_clip import OpenClipText, _text_without_weights

    sizes = {"context_length": 10, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    stub = {"image_size": 32, "patch_size": 32, "layers": 1, "width": 64, "head_width": 64}
    described = {"embed_dim": 8, "text_cfg": sizes, "vision_cfg": stub}
    tower = OpenClipText(TextTowerConfig(kind="open_clip", name="x"), _text_without_weights(described), described)
    tower.save_config(tmp_path)
    check_architecture(tower, tmp_path, "w")
    path = tmp_path / "text_tower" / "open_clip_config.json"
    for changed, said in (
        ({**described, "quick_gelu": True}, "model_cfg.quick_gelu=True"),
        ({**described, "text_cfg": {**sizes, "no_causal_mask": True}}, "model_cfg.text_cfg.no_causal_mask=True"),
    ):
        path.write_text(json.dumps({"model_cfg": changed}))
        with pytest.raises(UserError, match=f"^w: its tower was trained with {said}"):
            check_architecture(tower, tmp_path, "w")
    path.write_text("{")
    with pytest.raises(UserError, match=r"open_clip_config\.json: not a JSON file"):
        check_architecture(tower, tmp_path, "w")
