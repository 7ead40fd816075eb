"""The interface of all text towers, our own text transformer, and helpers that find where a caption ends in its padding.

CLIP's and big_vision's text towers are both settings of our pre-norm transformer:

    CLIP (arXiv 2103.00020)                  causal=true  pool=eos  activation=quick_gelu|gelu  norm_eps=1e-5
    big_vision (models/proj/image_text)      causal=false pad_mask=false  pool=last|map  tokenizer.sticky_eos=true
    the default, cheapest to train           causal=false pad_mask=true   pool=eos

Shapes: B captions, L tokens (columns), D width of the tower.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from flexiclip.config import TextTowerConfig
from flexiclip.errors import UserError
from flexiclip.models.transformer import Block, MAPHead, init_weights
from flexiclip.models.variants import shape_of

NO_TEXT = "the model is an image tower alone (model.text is null): it has no text half; train one with model.image.init"
SUBFOLDER = "text_tower"
"""The folder inside a model folder that holds the architecture of another library's tower."""
Tokenize = Callable[[list[str]], Tensor]
"""Maps N captions to tokens [N, L] int64, as tokenizers do."""


class TextTower(nn.Module, ABC):
    """A text tower: tokens to pooled features, before the projection into the joint space.

    `width` is D, `context_length` is the largest number of tokens, and `pad_id` is the id of padding. `trims` says
    whether columns that are padding in every row may be cut (see `trimming`) without changing the output.
    """

    width: int
    context_length: int
    pad_id: int
    trims: bool

    @abstractmethod
    def forward(self, tokens: Tensor) -> Tensor:
        """Encode tokens [B, L] int64, L <= context_length, to features [B, D] in float32 or in autocast's dtype."""

    @abstractmethod
    def save_config(self, folder: Path) -> None:
        """Write into folder/text_tower what build_text_tower needs, besides the recipe, to rebuild this tower offline."""

    def trimming(self, tokenizer: Tokenize) -> Tokenize:
        """Return the tokenizer, or one that also cuts padding columns if this tower allows it.

        The result holds no weights, so it can be pickled and sent to data workers.
        """
        return TrimmingTokenizer(tokenizer, self.pad_id) if self.trims else tokenizer

    def check_length(self, tokens: Tensor) -> None:
        """Raise UserError if the rows have more tokens than the tower has positions."""
        if tokens.shape[1] > self.context_length:
            limit, length = self.context_length, tokens.shape[1]
            raise UserError(f"the text tower takes {limit} tokens, not {length}; tokenize with the model's own tokenizer")


class AbsentText(TextTower):
    """The text tower of a model without a text half, such as an imported image tower. Using it raises UserError."""

    width = context_length = pad_id = 0
    trims = False

    def forward(self, tokens: Tensor) -> Tensor:
        """Raise UserError, because the model has no text half."""
        raise UserError(NO_TEXT)

    def save_config(self, folder: Path) -> None:
        """Do nothing: there is no architecture to write."""


def trim_padding(tokens: Tensor, pad_id: int) -> Tensor:
    """Cut the trailing columns that are `pad_id` in every row, [B, L] -> [B, l]. The first column always stays: 1 <= l <= L.

    This reads the values, so call it before the tokens go to a device. It is only for towers with `trims`.
    """
    used = (tokens != pad_id).any(dim=0).nonzero()
    return tokens[:, : int(used[-1]) + 1 if len(used) else 1]


@dataclass(frozen=True)
class TrimmingTokenizer:
    """A tokenizer followed by `trim_padding`: maps N captions to tokens [N, l], as long as the longest of them."""

    tokenizer: Tokenize
    pad_id: int

    def __call__(self, captions: list[str]) -> Tensor:
        """Return the tokens of the captions, int64 [N, l] with l >= 1."""
        return trim_padding(self.tokenizer(captions), self.pad_id)


def last_used(tokens: Tensor, pad_id: int) -> Tensor:
    """Return the position of each row's last token that is not padding, or 0 if all tokens are padding: [B, L] -> [B] int64."""
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    return ((tokens != pad_id) * positions).amax(dim=1)


def caption_end(tokens: Tensor, pad_id: int, eos_id: int) -> Tensor:
    """Return the position of each row's first EOS: [B, L] -> [B] int64.

    In a row without EOS, it is the position of the last token that is not padding.

    The end is not searched for as the last token that differs from the padding, because the padding may be EOS itself
    (the sticky EOS of sentencepiece) or the id of a real token (0 is `!` in CLIP's vocabulary).
    """
    is_eos = tokens == eos_id
    return torch.where(is_eos.any(dim=1), is_eos.int().argmax(dim=1), last_used(tokens, pad_id))


def mean_over(x: Tensor, valid: Tensor) -> Tensor:
    """Return the mean of x [B, L, D] over the positions where valid [B, L] is True, as [B, D].

    A row without such a position is zero.
    """
    weights = valid.to(x.dtype)[:, :, None]
    return (x * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)


def require(config: TextTowerConfig, *names: str) -> list[int]:
    """Return the values of the named settings, which the tokenizer fills in. Raises UserError if one of them is missing."""
    missing = [name for name in names if getattr(config, name) is None]
    if missing:
        raise UserError(f"model.text.{missing[0]} is not known: it is filled in from the tokenizer; set it where there is none")
    return [getattr(config, name) for name in names]


class TextTransformer(TextTower):
    """Token embeddings and learned position embeddings, transformer blocks, a last norm and a pool.

    Attention is causal, or it hides what follows a caption's EOS (pad_mask), or it sees all tokens. The pool takes the
    last column, the token at the first EOS, the mean of all tokens, or the output of a MAP head. With pad_mask, the mean
    and the MAP head use the tokens of the caption only. The size of the tower comes from the recipe, so it saves no
    files.
    """

    def __init__(self, config: TextTowerConfig) -> None:
        super().__init__()
        shape = shape_of(config, "model.text")
        vocab_size, self.pad_id, self.eos_id, self.context_length = require(
            config, "vocab_size", "pad_id", "eos_id", "context_length"
        )
        self.config, self.width = config, shape.width
        blind = config.pool != "last" and (config.pad_mask or (config.causal and config.pool == "eos"))
        self.trims = blind and self.pad_id != self.eos_id  # if padding is EOS, a cut would remove the longest caption's EOS
        self.token_embedding = nn.Embedding(vocab_size, shape.width)
        self.posemb = nn.Parameter(torch.empty(1, self.context_length, shape.width))
        self.blocks = nn.ModuleList(Block(shape, config.activation, config.norm_eps) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, eps=config.norm_eps)
        self.map_head = MAPHead(shape, config.activation, config.norm_eps) if config.pool == "map" else None
        init_weights(self)
        for embedding in (self.token_embedding.weight, self.posemb):  # unit norm per token, as in big_vision
            nn.init.normal_(embedding, std=shape.width**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode tokens [B, L] int64, L <= context_length, to pooled features [B, D]."""
        self.check_length(tokens)
        end = caption_end(tokens, self.pad_id, self.eos_id)
        valid = torch.arange(tokens.shape[1], device=tokens.device) <= end[:, None]
        # A causal position does not see the padding to its right. A mask would change nothing and lose SDPA's fast path.
        mask = valid[:, None, None] if self.config.pad_mask and not self.config.causal else None
        x = self.token_embedding(tokens) + self.posemb[:, : tokens.shape[1]]
        *first, last = self.blocks
        for block in first:
            x = block(x, mask, self.config.causal)
        if self.config.pool in ("eos", "last"):  # the last block computes only the token that is read
            at = end if self.config.pool == "eos" else -1
            seen = valid if self.config.pool == "eos" and self.config.causal else None  # the tokens up to this one
            x = last(x, mask if seen is None else seen[:, None, None], at=at)
            return self.norm(x)[:, 0]
        return self._pool(self.norm(last(x, mask, self.config.causal)), valid)

    def _pool(self, x: Tensor, valid: Tensor) -> Tensor:
        """Pool x [B, L, D] with valid [B, L] to [B, D], for the pools that read every token."""
        if self.map_head is not None:
            return self.map_head(x, valid[:, None, None] if self.config.pad_mask else None)
        return mean_over(x, valid) if self.config.pad_mask else x.mean(dim=1)

    def save_config(self, folder: Path) -> None:
        """Do nothing: the recipe describes this tower completely."""
