"""SentencePiece tokenizers: a `.model` file that a recipe names, or one trained on the training captions.

    flexiclip data tokenizer 'shards/*.tar' --output captions.model      # with tokenizer.path=null each run trains its own

`sticky_eos` is big_vision's padding (`eos="sticky"` in big_vision's pp/ops_text.py): captions are padded with EOS and
always end with it, also when they are cut. A tower that pools the last position then finds the same token there,
whatever the caption's length.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor

from flexiclip.config import TokenizerConfig
from flexiclip.data.tokenizers.base import Tokenizer, require_id
from flexiclip.errors import UserError
from flexiclip.files import text_instead, write_whole
from flexiclip.libraries import short_reason

MODEL_FILE = "sentencepiece.model"
MAX_TRAINING_CAPTIONS = 1_000_000
"""The largest number of captions to train on.

More captions hardly change a vocabulary of some thousand pieces, and the memory for training grows with their number.
"""


class SentencePieceTokenizer(Tokenizer):
    """The ids of a sentencepiece model, with EOS at the end."""

    def __init__(self, config: TokenizerConfig, files: Mapping[str, bytes]) -> None:
        super().__init__(config, files)
        import sentencepiece

        name = config.path or MODEL_FILE
        try:
            self._engine = sentencepiece.SentencePieceProcessor(model_proto=self.files[MODEL_FILE])
        except RuntimeError as error:
            found = text_instead(self.files[MODEL_FILE]) or short_reason(error)
            raise UserError(f"tokenizer.path={name}: not a sentencepiece model: {found}") from None
        self.vocab_size = self._engine.get_piece_size()
        self.eos_id = require_id(self._engine.eos_id(), "EOS", name, "train it with eos_id")
        if config.sticky_eos:
            self.pad_id = self.eos_id
        else:
            self.pad_id = require_id(self._engine.pad_id(), "padding", name, "set tokenizer.sticky_eos=true or give it a pad_id")

    @classmethod
    def collect(cls, config: TokenizerConfig) -> dict[str, bytes]:
        """Return the bytes of the `.model` file."""
        if config.path is None:
            raise UserError("tokenizer.path is not set: name a sentencepiece .model file, or let `flexiclip train` train one")
        try:
            return {MODEL_FILE: Path(config.path).read_bytes()}
        except OSError as error:
            raise UserError(f"tokenizer.path={config.path}: cannot read it ({error.strerror})") from None

    def settings(self) -> dict[str, object]:
        """Return the settings that change the ids, which include lower-casing and sticky EOS."""
        return super().settings() | {"lowercase": self.config.lowercase, "sticky_eos": self.config.sticky_eos}

    def encode(self, texts: list[str]) -> Tensor:
        """Map texts to ids with EOS at the end, int64 [N, context_length]. A long caption is cut before its EOS."""
        if self.config.lowercase:
            texts = [text.lower() for text in texts]
        tokens = torch.full((len(texts), self.context_length), self.pad_id, dtype=torch.int64)
        for row, ids in zip(tokens, self._engine.encode(texts), strict=True):
            ids = [*ids[: self.context_length - 1], self.eos_id]
            row[: len(ids)] = torch.tensor(ids)
        return tokens


def train_sentencepiece(captions: Iterable[str], output: Path, vocab_size: int, lowercase: bool) -> Path:
    """Train a unigram model on the captions (at most the first million), write it to `output`, and return `output`.

    As in big_vision's vocabularies, padding is 0, EOS is 1, unknown is 2, and there is no BOS. The same captions in the
    same order give the same bytes. A corpus that is too small for vocab_size gives a smaller vocabulary. Raises
    UserError if there are no captions, or if vocab_size is smaller than the alphabet needs.
    """
    import sentencepiece

    lines = (" ".join(caption.split()) for caption in islice(captions, MAX_TRAINING_CAPTIONS))
    sentences = (line.lower() if lowercase else line for line in lines if line)
    first = next(sentences, None)
    if first is None:
        raise UserError("no captions to train a tokenizer on: check data.train and data.captions")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=chain([first], sentences),
            model_writer=model,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            num_threads=1,  # one order of summation, so that the bytes are reproducible
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(
            f"tokenizer.vocab_size={vocab_size}: sentencepiece could not train on the captions: {short_reason(error)}"
        ) from None
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, model.getvalue())  # a run that is killed here does not leave half a vocabulary behind
    return output
