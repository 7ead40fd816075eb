"""What all tokenizers share: texts that are cut, the hash of settings and files, and the files in folders."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flexiclip.config import TokenizerConfig
from flexiclip.data.tokenizers.base import AbsentTokenizer, Tokenizer, read_files, require_id, unpacked, write_files
from flexiclip.errors import UserError

FILES = {"b.txt": b"bytes", "folder/a.json": b"{}"}


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


def test_fingerprint_is_the_hash_of_settings_and_files_whatever_their_order() -> None:
    config = TokenizerConfig("clip", context_length=12)
    known = Lengths(config, FILES).fingerprint()
    text = b'{"context_length": 12, "kind": "clip"}' + b"\nb.txt\n5\nbytes" + b"\nfolder/a.json\n2\n{}"
    assert known == hashlib.sha256(text).hexdigest()
    assert Lengths(config, dict(reversed(FILES.items()))).fingerprint() == known
    assert Lengths(replace(config, path="elsewhere"), FILES).fingerprint() == known
    for changed in (
        Lengths(replace(config, context_length=13), FILES),
        Lengths(config, {**FILES, "b.txt": b"other"}),
        Lengths(config, {"c.txt": b"bytes", "folder/a.json": b"{}"}),
        Lengths(config, {**FILES, "c": b""}),
    ):
        assert changed.fingerprint() != known


def test_an_absent_tokenizer_says_why_it_cannot_be_used() -> None:
    absent = AbsentTokenizer(TokenizerConfig(), AbsentTokenizer.collect(TokenizerConfig()))
    assert absent.files == {}
    assert absent([]).shape == (0, TokenizerConfig().context_length)
    with pytest.raises(UserError, match=r"image tower alone \(model\.text is null\): it has no tokenizer"):
        absent("a red fox")


def test_read_files_gives_what_write_files_wrote_without_hidden_files(tmp_path: Path) -> None:
    write_files(tmp_path, FILES)
    (tmp_path / "folder" / ".DS_Store").write_bytes(b"of a desktop")
    assert read_files(tmp_path) == FILES
    assert read_files(tmp_path / "absent") == {}


def test_unpacked_files_are_on_the_disk_and_go_again() -> None:
    with unpacked(FILES) as folder:
        assert read_files(folder) == FILES
    assert not folder.exists()


def test_require_id_refuses_a_token_that_the_vocabulary_does_not_have() -> None:
    assert require_id(0, "padding", "words.model", "name one") == 0
    for value in (None, -1):
        with pytest.raises(UserError, match=r"^the tokenizer words\.model has no padding token; name one$"):
            require_id(value, "padding", "words.model", "name one")
