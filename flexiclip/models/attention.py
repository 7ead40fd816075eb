"""Multi-head self-attention, which both towers use, over all tokens or for one query token.

Shapes: B batch, L tokens, D width, H heads, K = D / H.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PLAIN_UP_TO = 512
"""The most keys with which a CPU trains bfloat16 by plain matrix products.

With more keys the scores no longer fit into the caches, and torch's kernel is as fast.
"""


class Attention(nn.Module):
    """Multi-head self-attention whose queries, keys and values come from one fused linear layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False, at: Tensor | int | None = None) -> Tensor:
        """Attend over the tokens x [B, L, D] and return [B, L, D].

        `mask` is broadcastable to [B, H, L, L] and True where attention is allowed. `causal` is the alternative to a
        mask. `at` is the position of the only token of each row whose output is needed, as in `token_at`. The result is
        then [B, 1, D], the mask must be broadcastable to [B, H, 1, L], and `causal` must be False.
        """
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).unbind(2)
        if at is not None:
            q = token_at(q, at)
        x = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, causal, training=self.training)
        return self.proj(x.transpose(1, 2).reshape(batch, -1, width))


def token_at(x: Tensor, at: Tensor | int) -> Tensor:
    """Select one token of each row of x [B, L, ...] and return [B, 1, ...].

    `at` is one position for all rows (it may be negative), or one position per row as an int64 tensor [B].
    """
    if isinstance(at, int):
        return x[:, at:][:, :1]
    return x[torch.arange(x.shape[0], device=x.device), at].unsqueeze(1)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False, *, training: bool = False
) -> Tensor:
    """Return softmax(q k' / sqrt(K)) v: q [B, H, Lq, K], k and v [B, H, L, K] -> [B, H, Lq, K]. Masks as in `Attention`.

    This is torch's scaled_dot_product_attention, except where a CPU trains on short sequences in bfloat16. There, torch's
    kernel multiplies blocks that are too small for the bfloat16 instructions, and its backward pass is slower than in
    float32. Two plain batched products take half its time at 226 tokens and a fifth of it at 38
    (scripts/bench/subjects/attention.py). They round the scores to bfloat16 before the softmax, as autocast rounds every other
    product, and they keep the weights, 2 B H Lq L bytes, until the backward pass.
    """
    if training and q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[-2] <= PLAIN_UP_TO:
        return _attend_plainly(q, k, v, mask, causal)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


def _attend_plainly(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Compute the attention with two batched matrix products and an explicit softmax."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ v
