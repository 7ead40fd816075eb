"""Our own text tower: a pre-norm transformer over tokens, of which CLIP's and big_vision's text towers are both settings.

    CLIP (arXiv 2103.00020)                  causal=true  pool=eos  activation=quick_gelu|gelu  norm_eps=1e-5
    big_vision (models/proj/image_text)      causal=false pad_mask=false  pool=last|map  tokenizer.sticky_eos=true
    the default, cheapest to train           causal=false pad_mask=true   pool=eos

Shapes: B captions, L tokens, D width.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from flexiclip.config import TextTowerConfig
from flexiclip.models.text.base import TextTower, caption_end, mean_over, require
from flexiclip.models.transformer import Block, MAPHead, init_weights
from flexiclip.models.variants import shape_of


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
