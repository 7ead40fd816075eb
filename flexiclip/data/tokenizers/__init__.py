"""Tokenizers, which map texts to the ids that a text tower reads.

    tokenizer = build_tokenizer(config.tokenizer)        # when a run starts
    tokens = tokenizer(["a red apple", "a pear"])         # int64 [2, context_length]
    tokenizer.save(folder)                                # its files are part of the model folder
    load_tokenizer(folder, config.tokenizer, fingerprint)

A tokenizer is pickled together with its files, so data workers need neither the folder nor a network.
"""

from __future__ import annotations

from pathlib import Path

from flexiclip.config import TokenizerConfig
from flexiclip.data.tokenizers.base import AbsentTokenizer, Tokenizer, read_files
from flexiclip.data.tokenizers.foreign import ClipTokenizer, HuggingFaceTokenizer, OpenClipTokenizer
from flexiclip.data.tokenizers.sentencepiece import SentencePieceTokenizer, train_sentencepiece
from flexiclip.errors import UserError
from flexiclip.libraries import short_reason
from flexiclip.model_source import is_model_folder

FOLDER = "tokenizer"
"""The folder of a tokenizer in a model folder."""

__all__ = ["FOLDER", "AbsentTokenizer", "Tokenizer", "build_tokenizer", "load_tokenizer", "train_sentencepiece"]

_KINDS: dict[str, type[Tokenizer]] = {
    "sentencepiece": SentencePieceTokenizer,
    "clip": ClipTokenizer,
    "huggingface": HuggingFaceTokenizer,
    "open_clip": OpenClipTokenizer,
}


def build_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """Return the tokenizer that a recipe names. Raises UserError if its files cannot be found or read.

    `config.path` may be the folder `tokenizer` of a model folder, for every kind.
    """
    kind, folder = _KINDS[config.kind], Path(config.path or "")
    if folder.name == FOLDER and is_model_folder(folder.parent):
        return kind(config, read_files(folder))
    return kind(config, kind.collect(config))


def load_tokenizer(folder: Path, config: TokenizerConfig, fingerprint: str) -> Tokenizer:
    """Return the tokenizer that `save(folder)` wrote. `config.path` is not read, so it may no longer exist.

    Raises UserError if there is no tokenizer, or if its files or settings are not those of `fingerprint`. With other
    ids the text tower would silently compute wrong features.
    """
    files = read_files(folder)
    if not files:
        raise UserError(f"{folder}: no tokenizer files there; was the model folder copied whole?")
    try:
        tokenizer = _KINDS[config.kind](config, files)
    except UserError:
        raise
    except Exception as error:  # each library raises its own errors for files that it cannot read
        raise UserError(
            f"{folder}: no {config.kind} tokenizer can be read there: {short_reason(error)}; copy the model folder whole"
        ) from None
    found = tokenizer.fingerprint()
    if found != fingerprint:
        raise UserError(
            f"{folder}: this is not the tokenizer that the model was trained with (sha256 {found[:12]}, expected "
            f"{fingerprint[:12]}); restore the model folder's tokenizer files and the tokenizer section of its config"
        )
    return tokenizer
