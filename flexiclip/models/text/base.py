"""What the rest of the framework knows of a text tower, and where a caption ends inside a padded row.

Shapes: B captions, L tokens (columns), D width of the tower.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor, nn

from flexiclip.config import TextTowerConfig
from flexiclip.errors import UserError

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
