"""sentencepiece's tokenizers against the library called directly, and how a vocabulary is trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sentencepiece

from flexiclip.config import TokenizerConfig
from flexiclip.data.tokenizers import build_tokenizer, train_sentencepiece
from flexiclip.errors import UserError

ANIMALS = ["red fox", "Grey wolf", "small owl", "tall giraffe", "sleeping cat", "running horse", "old turtle", "blue whale"]
CAPTIONS = [f"A {animal} {place}" for animal in ANIMALS for place in ("in the snow", "on a hill", "by the sea", "at night")]


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_sentencepiece(CAPTIONS, tmp_path_factory.mktemp("spm") / "captions.model", 120, lowercase=True)


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
