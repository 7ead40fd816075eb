"""What every tokenizer is: some settings, the bytes of its files, and an engine derived from the two.

Because nothing else defines a tokenizer, the three ways of making one (from a recipe, from a model folder, by unpickling in a
data worker) meet in one constructor, and a hash over settings and files tells whether a model folder still holds the tokenizer
that the model was trained with.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from flexiclip.config import TokenizerConfig
from flexiclip.errors import UserError

_CHARACTERS = 16  # of a text, a column of the output
_LONGEST_TEXT = 1024  # characters that are looked at in any case


class Tokenizer(ABC):
    """Texts to ids, padded or cut to one length.

    vocab_size: ids are in [0, vocab_size). pad_id, eos_id: the ids that fill up and that end a caption.
    context_length: columns of the output. files: relative name -> bytes, all that is needed to build it again without a network.
    """

    vocab_size: int
    pad_id: int
    eos_id: int

    def __init__(self, config: TokenizerConfig, files: Mapping[str, bytes]) -> None:
        self.config = config
        self.files = dict(files)
        self.context_length = config.context_length

    @classmethod
    @abstractmethod
    def collect(cls, config: TokenizerConfig) -> dict[str, bytes]:
        """The files of the tokenizer that a recipe names. Raises UserError when it cannot be found."""

    @abstractmethod
    def encode(self, texts: list[str]) -> Tensor:
        """At least one text to ids, int64 [N, context_length]."""

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """One text or N of them to ids, int64 [N, context_length].

        Of a text only as much is looked at as can fill the columns: the time that a byte-pair encoding in Python takes for a word
        grows with the square of its length, and the web's captions hold words of a megabyte.
        """
        longest = max(_LONGEST_TEXT, _CHARACTERS * self.context_length)
        batch = [text[:longest] for text in ([texts] if isinstance(texts, str) else texts)]
        if not batch:
            return torch.empty((0, self.context_length), dtype=torch.int64)
        return self.encode(batch)

    def settings(self) -> dict[str, Any]:
        """What shapes the output besides the files; part of the fingerprint."""
        return {"kind": self.config.kind, "context_length": self.context_length}

    def fingerprint(self) -> str:
        """sha256 over the settings and the files (hexadecimal). It does not depend on where the files lie."""
        digest = hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode())
        for name in sorted(self.files):
            digest.update(f"\n{name}\n{len(self.files[name])}\n".encode())
            digest.update(self.files[name])
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Write the files into a folder that holds nothing else; load_tokenizer rebuilds the tokenizer from there, offline."""
        write_files(folder, self.files)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.config, self.files)


class AbsentTokenizer(Tokenizer):
    """The tokenizer of a model without a text half, an imported image tower alone: it has no files, and using it says why."""

    vocab_size = pad_id = eos_id = 0

    @classmethod
    def collect(cls, config: TokenizerConfig) -> dict[str, bytes]:
        """No files."""
        return {}

    def encode(self, texts: list[str]) -> Tensor:
        """Raises UserError."""
        raise UserError("the model is an image tower alone (model.text is null): it has no tokenizer and no text half")


def read_files(folder: Path) -> dict[str, bytes]:
    """Every file under `folder`, by relative name, hidden ones left out (desktops drop theirs anywhere)."""
    paths = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """The inverse of read_files; makes the folders that it needs."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@contextmanager
def unpacked(files: Mapping[str, bytes]) -> Iterator[Path]:
    """A folder that holds `files` while the block runs, for libraries that only read from disk."""
    with TemporaryDirectory(prefix="flexiclip-tokenizer-") as folder:
        write_files(Path(folder), files)
        yield Path(folder)


def require_id(value: int | None, which: str, name: str, mend: str) -> int:
    """A special token's id, or UserError when the vocabulary has none (None or, in sentencepiece, -1)."""
    if value is None or value < 0:
        raise UserError(f"the tokenizer {name} has no {which} token; {mend}")
    return value
