"""Tokenizers with Gemma's vocabulary, and what SigLIP 2 does to its captions, against big_vision's pipeline written out."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
import transformers

from flexiclip.config import TokenizerConfig
from flexiclip.data.tokenizers import build_tokenizer, load_tokenizer
from flexiclip.errors import UserError

PIECES = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(chr(code) for code in range(33, 127)), "▁", "é", "ß"]
GEMMA = {piece: number for number, piece in enumerate(PIECES)}


def gemma_folder(folder: Path, model_type: str, kind: str = "GemmaTokenizer", side: str = "right") -> Path:
    """A folder as SigLIP 2's are: Gemma's tokenizer, which keeps capitals, ends with EOS and fills up with <pad>."""
    tokenizer = getattr(transformers, kind)(vocab=GEMMA, merges=[], add_bos_token=False, add_eos_token=True, padding_side=side)
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def as_big_vision(text: str, length: int) -> list[int]:
    """lower|tok(length, model="gemma", bos="no", eos="sticky"), of a vocabulary of single characters."""
    ids = [GEMMA.get(c, GEMMA["<unk>"]) for c in text.lower().replace(" ", "▁")]
    ids = [*ids[: length - 1], GEMMA["<eos>"]]
    return ids + [GEMMA["<pad>"]] * (length - len(ids))


@pytest.mark.parametrize("kind", ["GemmaTokenizer", "Siglip2Tokenizer"])
def test_huggingface_of_siglip_2_has_the_ids_of_big_vision(kind: str, tmp_path: Path) -> None:
    folder = gemma_folder(tmp_path / "siglip2", "siglip", kind)
    config = TokenizerConfig("huggingface", path=str(folder), context_length=12)
    tokenizer = build_tokenizer(config)
    texts = ["A CAT", "a cat", "Été  là", "", "The Quick Brown Fox Jumps", "STRASSE ß"]
    expected = torch.tensor([as_big_vision(text, 12) for text in texts])
    assert torch.equal(tokenizer(texts), expected)
    assert (tokenizer.pad_id, tokenizer.eos_id) == (0, 1)
    tokenizer.save(tmp_path / "saved")
    loaded = load_tokenizer(tmp_path / "saved", replace(config, path=None), tokenizer.fingerprint())
    for other in (loaded, pickle.loads(pickle.dumps(tokenizer))):
        assert torch.equal(other(texts), expected)


def test_huggingface_keeps_the_capitals_of_every_other_model(tmp_path: Path) -> None:
    config = TokenizerConfig("huggingface", path=str(gemma_folder(tmp_path / "gemma", "gemma")), context_length=12)
    tokenizer = build_tokenizer(config)
    assert tokenizer("A CAT")[0].tolist() == [GEMMA[c] for c in "A▁CAT"] + [1] + [0] * 6
    (tmp_path / "gemma" / "config.json").unlink()
    assert torch.equal(build_tokenizer(config)("A CAT"), tokenizer("A CAT"))


def test_open_clip_of_siglip_2_is_lower_cased_as_its_configurations_say(tmp_path: Path) -> None:
    names = [name for name in open_clip.list_models() if "SigLIP2" in name]
    assert len(names) > 5
    for name in names:
        assert open_clip.get_model_config(name)["text_cfg"]["tokenizer_kwargs"]["clean"] == "canonicalize"
    folder = gemma_folder(tmp_path / "oc", "siglip")
    settings = {"hf_tokenizer_name": "any", "context_length": 12, "tokenizer_kwargs": {"clean": "canonicalize"}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"text_cfg": settings}}))
    config = TokenizerConfig("open_clip", path=f"local-dir:{folder}", context_length=12)
    tokenizer = build_tokenizer(config)
    tokenizer.save(tmp_path / "saved")
    for each in (tokenizer, load_tokenizer(tmp_path / "saved", config, tokenizer.fingerprint())):
        assert each(["A CAT", "a cat"]).tolist() == [as_big_vision("a cat", 12)] * 2


def test_a_vocabulary_without_padding_or_end_says_what_to_name(tmp_path: Path) -> None:
    gemma_folder(tmp_path, "gemma")
    said = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    for token, message in (("pad_token", "no padding token; name one"), ("eos_token", "no EOS token; name one")):
        less = {key: value for key, value in said.items() if key != token}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(less))
        with pytest.raises(UserError, match=message):
            build_tokenizer(TokenizerConfig("huggingface", path=str(tmp_path), context_length=8))


def test_a_huggingface_tokenizer_that_pads_on_the_left_pads_on_the_right_here(tmp_path: Path) -> None:
    """Gemma's and GPT's classes fill up on the left, where a tower that pools the first EOS or the mean expects the text."""
    config = TokenizerConfig("huggingface", path=str(gemma_folder(tmp_path, "gemma", side="left")), context_length=6)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).padding_side == "left"
    assert build_tokenizer(config)("ab")[0].tolist() == [GEMMA["a"], GEMMA["b"], 1, 0, 0, 0]
