"""Text towers of open_clip against the library called directly, and their way through a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import transformers
from kit.golden import largest_difference
from kit.text_towers import bert, through_a_folder

from flexiclip.config import TextTowerConfig
from flexiclip.errors import UserError
from flexiclip.models.text import build_text_tower, trim_padding

TOKENS = torch.tensor([[5, 7, 9, 2, 0, 0, 0], [5, 2, 0, 0, 0, 0, 0], [5, 8, 8, 6, 2, 0, 0]])  # padding 0, EOS 2


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
