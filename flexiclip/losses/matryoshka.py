"""Matryoshka embeddings (arXiv 2205.13147): the first columns of an embedding are an embedding too, at any of several widths.

The same contrastive loss is taken of nested prefixes, each brought back to unit length, and averaged with equal weights. Like the
losses themselves it is a function of the rows of the global batch, so tiles, ranks and gradient caching know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def nested_loss(
    loss: Callable[..., Tensor], widths: Sequence[int], zimg: Tensor, ztxt: Tensor, *scalars: Tensor, **options: Any
) -> Tensor:
    """The mean over `widths` of `loss(zimg[:, :w], ztxt[:, :w], *scalars, **options)`, 0-D.

    zimg, ztxt: [b, D] unit rows of this rank. widths: each from 1 to D. The scalars are those of every width.
    """
    return torch.stack([loss(prefix(zimg, w), prefix(ztxt, w), *scalars, **options) for w in widths]).mean()


def prefix(z: Tensor, width: int) -> Tensor:
    """The first `width` columns of unit rows [N, D], as unit rows [N, width]."""
    return z if width == z.shape[1] else F.normalize(z[:, :width], dim=1)
