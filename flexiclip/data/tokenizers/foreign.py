"""Tokenizers of other libraries: those of OpenAI's CLIP and of open_clip's models, and those of Hugging Face.

Each is read once from where the recipe says (a package, a folder or a hub). From then on it is stored as the bytes of
its files. Code that comes with a vocabulary is never run (trust_remote_code stays off).
"""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from torch import Tensor

from flexiclip.config import TokenizerConfig
from flexiclip.config.load import resolve_folder
from flexiclip.data.tokenizers.base import Tokenizer, read_files, require_id, unpacked
from flexiclip.errors import UserError
from flexiclip.files import found_instead
from flexiclip.libraries import library_errors, require, short_reason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"
OPEN_CLIP_FILE = "open_clip_config.json"
_LARGEST_BPE = 2**24  # bytes, decompressed; CLIP's file has 3 MB
_OPEN_CLIP_OPTIONS = {"clean", "strip_sep_token", "language"}
_NEEDS_PAD = 'name one in its tokenizer_config.json ("pad_token"), or choose a vocabulary with padding'
_NEEDS_EOS = 'name one in its tokenizer_config.json ("eos_token"), or choose a vocabulary that ends its texts'
_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("spiece.model", "tokenizer.model", "sentencepiece.bpe.model"),
)
_GEMMA_VOCABULARY = 256_000


class ClipTokenizer(Tokenizer):
    """OpenAI CLIP's lower-cased byte-pair encoding.

    It has 49,408 ids. Padding is 0, and EOS is 49,407, which is kept when a caption is cut.
    """

    def __init__(self, config: TokenizerConfig, files: Mapping[str, bytes]) -> None:
        super().__init__(config, files)
        from open_clip.tokenizer import SimpleTokenizer

        with gzip.open(io.BytesIO(self.files[BPE_FILE])) as merges:
            if len(merges.read(_LARGEST_BPE + 1)) > _LARGEST_BPE:
                raise UserError(f"tokenizer: {BPE_FILE} inflates to more than {_LARGEST_BPE} bytes; it is not CLIP's")
        with unpacked(self.files) as folder:
            self._engine = SimpleTokenizer(bpe_path=str(folder / BPE_FILE), context_length=config.context_length)
        self.vocab_size = self._engine.vocab_size
        self.pad_id, self.eos_id = 0, self._engine.eot_token_id

    @classmethod
    def collect(cls, config: TokenizerConfig) -> dict[str, bytes]:
        """Return the file of merges in open_clip's package."""
        from open_clip.tokenizer import default_bpe

        return {BPE_FILE: Path(default_bpe()).read_bytes()}

    def encode(self, texts: list[str]) -> Tensor:
        """Map texts to ids between start and end of text, int64 [N, context_length]."""
        return self._engine(texts)


class HuggingFaceTokenizer(Tokenizer):
    """An AutoTokenizer with its own special tokens, padded on the right.

    Its EOS is the separator token if it has no EOS token.
    """

    def __init__(self, config: TokenizerConfig, files: Mapping[str, bytes]) -> None:
        super().__init__(config, files)
        # Rust threads do not survive the fork into data workers, and the workers already run in parallel.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        name = config.path or "in the model folder"
        with unpacked(self.files) as folder:
            self._engine = _auto_tokenizer(str(folder), name)
        self._engine.padding_side = "right"
        self.vocab_size, self.pad_id, self.eos_id = _ids_of(self._engine, name)

    @classmethod
    def collect(cls, config: TokenizerConfig) -> dict[str, bytes]:
        """Return what save_pretrained writes for the tokenizer of a folder, a hub name or package:MODULE/FOLDER."""
        if config.path is None:
            raise UserError("tokenizer.kind=huggingface needs tokenizer.path: a folder, a hub name or package:MODULE/FOLDER")
        source = resolve_folder(config.path)
        _check_files(Path(source))
        return _saved(_as_trained(_auto_tokenizer(source, config.path), source, config.path))

    def encode(self, texts: list[str]) -> Tensor:
        """Map texts to ids with the vocabulary's special tokens, int64 [N, context_length]."""
        found = self._engine(texts, padding="max_length", truncation=True, max_length=self.context_length, return_tensors="pt")
        tokens: Tensor = found["input_ids"]
        return tokens


class OpenClipTokenizer(Tokenizer):
    """The tokenizer that an open_clip model was trained with, by the model's name."""

    def __init__(self, config: TokenizerConfig, files: Mapping[str, bytes]) -> None:
        super().__init__(config, files)
        import open_clip
        from open_clip.tokenizer import SimpleTokenizer

        name = config.path or "in the model folder"
        _check_text_cfg(_text_cfg(self.files), name)
        with unpacked(self.files) as folder:
            self._engine = open_clip.get_tokenizer(f"local-dir:{folder}", context_length=config.context_length)
        if isinstance(self._engine, SimpleTokenizer):
            self.vocab_size, self.pad_id, self.eos_id = self._engine.vocab_size, 0, self._engine.eot_token_id
        else:
            self.vocab_size, self.pad_id, self.eos_id = _ids_of(self._engine.tokenizer, name)

    @classmethod
    def collect(cls, config: TokenizerConfig) -> dict[str, bytes]:
        """Return the model's text configuration and, if it has a Hugging Face vocabulary, the files of that.

        These are the files that open_clip reads from a `local-dir:` folder.
        """
        import open_clip
        from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

        if config.path is None:
            raise UserError("tokenizer.kind=open_clip needs tokenizer.path: a model name such as ViT-B-32")
        try:
            described = open_clip.get_model_config(config.path)
            if not described:
                raise UserError(f"tokenizer.path={config.path}: open_clip knows no such model; see open_clip.list_models()")
            _check_text_cfg(described.get("text_cfg", {}), config.path)
            engine = open_clip.get_tokenizer(config.path)
        except UserError:
            raise
        except Exception as error:  # open_clip and transformers each raise their own errors
            raise UserError(f"tokenizer.path={config.path}: open_clip cannot load its tokenizer: {short_reason(error)}") from None
        if not isinstance(engine, (SimpleTokenizer, HFTokenizer)):
            raise UserError(f"tokenizer.path={config.path}: use tokenizer.kind=sentencepiece with its .model file instead")
        files = {} if isinstance(engine, SimpleTokenizer) else _saved(engine)
        text = {"model_cfg": {"text_cfg": described["text_cfg"]}}
        return files | {OPEN_CLIP_FILE: json.dumps(text, indent=2, sort_keys=True).encode()}

    def encode(self, texts: list[str]) -> Tensor:
        """Map texts to the ids that the model was trained with, int64 [N, context_length]."""
        return self._engine(texts)


def _text_cfg(files: Mapping[str, bytes]) -> object:
    """Return the text configuration of open_clip's file. Raises UserError if it is missing or damaged."""
    try:
        return json.loads(files[OPEN_CLIP_FILE])["model_cfg"]["text_cfg"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(
            f"{OPEN_CLIP_FILE} is missing or damaged ({short_reason(error)}); was the model folder copied whole?"
        ) from None


def _check_text_cfg(text_cfg: object, name: str) -> None:
    """Raise UserError for tokenizer options other than open_clip's own.

    open_clip passes these options to transformers unchanged, including `trust_remote_code`.
    """
    given = text_cfg.get("tokenizer_kwargs") or {} if isinstance(text_cfg, dict) else None
    if not isinstance(given, dict) or not given.keys() <= _OPEN_CLIP_OPTIONS:
        raise UserError(f"tokenizer {name}: tokenizer_kwargs={given!r}; only {', '.join(sorted(_OPEN_CLIP_OPTIONS))} are taken")


def _auto_tokenizer(source: str, name: str) -> PreTrainedTokenizerBase:
    """Return the AutoTokenizer of a folder or hub name. Raises UserError."""
    transformers = require("transformers", "flexiclip[hf]", "tokenizer.kind=huggingface")
    with library_errors(f"tokenizer.path={name}: no Hugging Face tokenizer there"):
        return transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)


def _check_files(folder: Path) -> None:
    """Refuse files that are not a tokenizer's.

    A web page or a Git LFS pointer in place of a list of words would be read as the words.
    """
    for path in [folder / name for name in _FILES if (folder / name).is_file()]:
        found = found_instead(path)
        if found is not None:
            raise UserError(f"{path}: not a tokenizer's file: {found}")


def _as_trained(tokenizer: PreTrainedTokenizerBase, source: str, name: str) -> PreTrainedTokenizerBase:
    """Make the tokenizer of SigLIP 2 lower-case its texts, as big_vision did in training; return others unchanged.

    The folders of SigLIP 2 name Gemma's tokenizer, which keeps capitals. The Siglip2Tokenizer of transformers 5
    lower-cases its texts itself.
    """
    gemma = any(kind in type(tokenizer).__name__ for kind in ("Gemma", "Siglip2")) or len(tokenizer) >= _GEMMA_VOCABULARY
    if not gemma or _model_type(source) not in ("siglip", "siglip2"):
        return tokenizer
    if tokenizer("A RED FOX")["input_ids"] == tokenizer("a red fox")["input_ids"]:
        return tokenizer
    from tokenizers import normalizers
    from transformers import PreTrainedTokenizerFast

    engine = getattr(tokenizer, "backend_tokenizer", None)
    if engine is None:
        raise UserError(f"tokenizer.path={name}: SigLIP 2 needs the fast tokenizer, whose tokenizer.json is missing")
    rest = [engine.normalizer] if engine.normalizer is not None else []
    engine.normalizer = normalizers.Sequence([normalizers.Lowercase(), *rest])
    special = {f"{token}_token": getattr(tokenizer, f"{token}_token") for token in ("bos", "eos", "unk", "pad", "mask")}
    named = {token: text for token, text in special.items() if text}
    return PreTrainedTokenizerFast(tokenizer_object=engine, truncation_side=tokenizer.truncation_side, **named)


def _model_type(source: str) -> str | None:
    """Return the model's type from the config.json in the tokenizer's folder, or None if there is none."""
    from transformers.utils import cached_file

    try:
        path = cached_file(source, "config.json")
        data = json.loads(Path(str(path)).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data.get("model_type") if isinstance(data, dict) else None


def _saved(tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes]:
    """Return the files that save_pretrained writes."""
    with TemporaryDirectory(prefix="flexiclip-tokenizer-") as folder:
        tokenizer.save_pretrained(folder)
        return read_files(Path(folder))


def _ids_of(tokenizer: PreTrainedTokenizerBase, name: str) -> tuple[int, int, int]:
    """Return (vocabulary size, id of padding, id of EOS). Without an EOS token, the separator token ends a text."""
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    pad = require_id(tokenizer.pad_token_id, "padding", name, _NEEDS_PAD)
    return len(tokenizer), pad, require_id(eos, "EOS", name, _NEEDS_EOS)
