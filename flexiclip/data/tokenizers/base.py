"""The base class of all tokenizers: settings, the bytes of the files, and an engine built from both.

Nothing else defines a tokenizer. It can be made from a recipe, from a model folder or by unpickling in a data worker,
and all three use one constructor. A hash over the settings and the files tells whether a model folder still holds the
tokenizer that the model was trained with.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from flexiclip.config import TokenizerConfig
from flexiclip.errors import UserError

_CHARACTERS = 16  # a text is cut to this many characters per column of the output
_LONGEST_TEXT = 1024  # a text with at most this many characters is never cut


class Tokenizer(ABC):
    """Maps texts to ids, padded or cut to one length.

    `vocab_size`: ids are in [0, vocab_size). `pad_id`: fills up a caption. `eos_id`: ends a caption. `context_length`:
    the number of columns of the output. `files`: maps relative names to bytes, with all that is needed to build the
    tokenizer again without a network.
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
        """Return the files of the tokenizer that a recipe names. Raises UserError if it cannot be found."""

    @abstractmethod
    def encode(self, texts: list[str]) -> Tensor:
        """Map one or more texts to ids, int64 [N, context_length]."""

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Map one text or N texts to ids, int64 [N, context_length].

        Each text is first cut to a length that is enough to fill the columns. The time of a byte-pair encoding in
        Python grows with the square of a word's length, and captions from the web contain words of a megabyte.
        """
        longest = max(_LONGEST_TEXT, _CHARACTERS * self.context_length)
        batch = [text[:longest] for text in ([texts] if isinstance(texts, str) else texts)]
        if not batch:
            return torch.empty((0, self.context_length), dtype=torch.int64)
        return self.encode(batch)

    def settings(self) -> dict[str, object]:
        """Return the settings that change the output. They are part of the fingerprint."""
        return {"kind": self.config.kind, "context_length": self.context_length}

    def fingerprint(self) -> str:
        """Return the sha256 over the settings and the files (hexadecimal), which does not depend on where the files are."""
        digest = hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode())
        for name in sorted(self.files):
            digest.update(f"\n{name}\n{len(self.files[name])}\n".encode())
            digest.update(self.files[name])
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Write the files into a folder that holds nothing else. load_tokenizer rebuilds the tokenizer from it, offline."""
        write_files(folder, self.files)

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[TokenizerConfig, dict[str, bytes]]]:
        return type(self), (self.config, self.files)


class AbsentTokenizer(Tokenizer):
    """The tokenizer of a model without a text tower. It has no files, and using it raises an error that says why."""

    vocab_size = pad_id = eos_id = 0

    @classmethod
    def collect(cls, config: TokenizerConfig) -> dict[str, bytes]:
        """Return no files."""
        return {}

    def encode(self, texts: list[str]) -> Tensor:
        """Raise UserError."""
        raise UserError("the model is an image tower alone (model.text is null): it has no tokenizer and no text half")


def read_files(folder: Path) -> dict[str, bytes]:
    """Return every file under `folder` by relative name. Hidden files are left out, because desktops create them anywhere."""
    paths = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files, and create the folders that they need. This is the inverse of read_files."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@contextmanager
def unpacked(files: Mapping[str, bytes]) -> Iterator[Path]:
    """A temporary folder that holds `files`, for libraries that only read from disk."""
    with TemporaryDirectory(prefix="flexiclip-tokenizer-") as folder:
        write_files(Path(folder), files)
        yield Path(folder)


def require_id(value: int | None, which: str, name: str, fix: str) -> int:
    """Return a special token's id. Raises UserError if the vocabulary has none (None, or -1 in sentencepiece)."""
    if value is None or value < 0:
        raise UserError(f"the tokenizer {name} has no {which} token; {fix}")
    return value
