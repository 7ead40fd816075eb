"""What the rest of the framework knows of a text tower, and where a caption ends inside a padded row.

Shapes: B captions, L tokens (columns), D width of the tower.

Our own text tower: a pre-norm transformer over tokens, of which CLIP's and big_vision's text towers are both settings.

    CLIP (arXiv 2103.00020)                  causal=true  pool=eos  activation=quick_gelu|gelu  norm_eps=1e-5
    big_vision (models/proj/image_text)      causal=false pad_mask=false  pool=last|map  tokenizer.sticky_eos=true
    the default, cheapest to train           causal=false pad_mask=true   pool=eos

Shapes: B captions, L tokens, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor, nn

from flexiclip.config import TextTowerConfig
from flexiclip.errors import UserError
from flexiclip.models.transformer import Block, MAPHead, init_weights
from flexiclip.models.variants import shape_of

NO_TEXT = "the model is an image tower alone (model.text is null): it has no text half; train one with model.image.init"
SUBFOLDER = "text_tower"
"""The folder inside a model folder that holds the architecture of a foreign tower."""
WEIGHTS = "model.safetensors"
"""The file of a model folder that holds the weights of all its parts."""


class TextTower(nn.Module, ABC):
    """Tokens to pooled features before the projection into the joint space.

    width: D. context_length: the longest input. pad_id: the id that fills up. trims: whether columns that are padding in every
    row may be cut (trim_padding) without changing the output.
    """

    width: int
    context_length: int
    pad_id: int
    trims: bool

    @abstractmethod
    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [B, L] int64, L <= context_length -> features [B, D], float32 or autocast's dtype."""

    @abstractmethod
    def save_config(self, folder: Path) -> None:
        """Write into folder/text_tower what build_text_tower needs, besides the recipe, to build this tower again offline."""

    def check_length(self, tokens: Tensor) -> None:
        """Raise UserError for rows longer than the tower's positions."""
        if tokens.shape[1] > self.context_length:
            limit, length = self.context_length, tokens.shape[1]
            raise UserError(f"the text tower takes {limit} tokens, not {length}; tokenize with the model's own tokenizer")


class AbsentText(TextTower):
    """The text tower of a model that has none, an imported image tower alone: every use of it says so."""

    width = context_length = pad_id = 0
    trims = False

    def forward(self, tokens: Tensor) -> Tensor:
        """Raises UserError."""
        raise UserError(NO_TEXT)

    def save_config(self, folder: Path) -> None:
        """Nothing to write."""


def trim_padding(tokens: Tensor, pad_id: int) -> Tensor:
    """Cut the trailing columns that are `pad_id` in every row, but not the first column: [B, L] -> [B, l], 1 <= l <= L.

    Looks at the values, so call it before the tokens go to a device. For towers with `trims` only.
    """
    used = (tokens != pad_id).any(dim=0).nonzero()
    return tokens[:, : int(used[-1]) + 1 if len(used) else 1]


def last_used(tokens: Tensor, pad_id: int) -> Tensor:
    """Position of each row's last token that is not padding, 0 where all is padding: [B, L] -> [B] int64."""
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    return ((tokens != pad_id) * positions).amax(dim=1)


def caption_end(tokens: Tensor, pad_id: int, eos_id: int) -> Tensor:
    """Position of each row's first EOS, or of its last token that is not padding where it has none: [B, L] -> [B] int64.

    The first EOS, not the last token that differs from the padding, because the padding may be EOS itself (sentencepiece's sticky
    EOS) or the id of a real token (0 is `!` in CLIP's vocabulary).
    """
    is_eos = tokens == eos_id
    return torch.where(is_eos.any(dim=1), is_eos.int().argmax(dim=1), last_used(tokens, pad_id))


def mean_over(x: Tensor, valid: Tensor) -> Tensor:
    """Mean of x [B, L, D] over the positions where valid [B, L] holds -> [B, D], zeros for a row without any."""
    weights = valid.to(x.dtype)[:, :, None]
    return (x * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)


def require(config: TextTowerConfig, *names: str) -> list[int]:
    """The named settings that the tokenizer fills in, or UserError when nobody has."""
    missing = [name for name in names if getattr(config, name) is None]
    if missing:
        raise UserError(f"model.text.{missing[0]} is not known: it is filled in from the tokenizer; set it where there is none")
    return [getattr(config, name) for name in names]


class TextTransformer(TextTower):
    """Token and learned position embeddings, blocks, a last norm and a pool. Its size stands in the recipe, so it saves no files.

    Attention is causal, or hides what follows a caption's EOS (pad_mask), or sees everything. The pools: the last column, the
    first EOS, the mean (over the caption alone with pad_mask) or a MAP head (likewise).
    """

    def __init__(self, config: TextTowerConfig) -> None:
        super().__init__()
        shape = shape_of(config, "model.text")
        vocab_size, self.pad_id, self.eos_id, self.context_length = require(
            config, "vocab_size", "pad_id", "eos_id", "context_length"
        )
        self.config, self.width = config, shape.width
        blind = config.pool != "last" and (config.pad_mask or (config.causal and config.pool == "eos"))
        self.trims = blind and self.pad_id != self.eos_id  # cutting a sticky EOS would cut the end of the longest caption
        self.token_embedding = nn.Embedding(vocab_size, shape.width)
        self.posemb = nn.Parameter(torch.empty(1, self.context_length, shape.width))
        self.blocks = nn.ModuleList(Block(shape, config.activation, config.norm_eps) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, eps=config.norm_eps)
        self.map_head = MAPHead(shape, config.activation, config.norm_eps) if config.pool == "map" else None
        init_weights(self)
        for embedding in (self.token_embedding.weight, self.posemb):  # each has unit norm a token, as in big_vision
            nn.init.normal_(embedding, std=shape.width**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [B, L] int64, L <= context_length -> pooled features [B, D]."""
        self.check_length(tokens)
        end = caption_end(tokens, self.pad_id, self.eos_id)
        valid = torch.arange(tokens.shape[1], device=tokens.device) <= end[:, None]
        # A causal position sees nothing to its right, padding included: its mask would cost SDPA's fast path and change nothing.
        mask = valid[:, None, None] if self.config.pad_mask and not self.config.causal else None
        x = self.token_embedding(tokens) + self.posemb[:, : tokens.shape[1]]
        *first, last = self.blocks
        for block in first:
            x = block(x, mask, self.config.causal)
        if self.config.pool in ("eos", "last"):  # one token is read, so the last block computes no other
            at = end if self.config.pool == "eos" else -1
            seen = valid if self.config.pool == "eos" and self.config.causal else None  # all that stands left of it
            x = last(x, mask if seen is None else seen[:, None, None], at=at)
            return self.norm(x)[:, 0]
        return self._pool(self.norm(last(x, mask, self.config.causal)), valid)

    def _pool(self, x: Tensor, valid: Tensor) -> Tensor:
        """x [B, L, D], valid [B, L] -> [B, D], of the pools that read every token."""
        if self.map_head is not None:
            return self.map_head(x, valid[:, None, None] if self.config.pad_mask else None)
        return mean_over(x, valid) if self.config.pad_mask else x.mean(dim=1)

    def save_config(self, folder: Path) -> None:
        """Nothing to write: the recipe says it all."""
