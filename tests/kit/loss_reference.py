"""The contrastive losses from their definitions, pair by pair in float64, and what the tests of the losses share.

It is light to import, because every rank of test_contrastive_ranks.py imports it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NAMES = ("loss", "dzimg", "dztxt", "dscale", "dbias")

Gradients = dict[str, Tensor]
"""loss and its gradients, by NAMES."""

IDS = torch.tensor([7, 3, 7, 5, 3, 9, 7, 1, 2, 8, 9, 6])
"""Twins on one rank, across ranks, and triplets; every caption of a tile of one column may be masked for a row."""


def scalars_of(kind: str, scale: float = 2.0) -> list[Tensor]:
    values = [scale] if kind == "softmax" else [scale, -1.5]
    return [torch.tensor([value], dtype=torch.float64) for value in values]


def rows(count: int, dim: int = 8, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Two lots of unit rows, those of a pair somewhat alike."""
    generator = torch.Generator().manual_seed(count)
    zimg = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    ztxt = zimg + torch.randn(count, dim, generator=generator, dtype=torch.float64)
    return F.normalize(zimg, dim=1).to(dtype), F.normalize(ztxt, dim=1).to(dtype)


def differentiate(loss: Callable[..., Tensor], zimg: Tensor, ztxt: Tensor, *scalars: Tensor, **options: Any) -> Gradients:
    """The loss of copies of its inputs, and the gradients in them."""
    inputs = [x.detach().clone().requires_grad_() for x in (zimg, ztxt, *scalars)]
    value = loss(*inputs, **options)
    return dict(zip(NAMES, (value.detach(), *torch.autograd.grad(value, inputs)), strict=False))


def slow_loss(zimg: Tensor, ztxt: Tensor, log_scale: Tensor, bias: Tensor | None = None, ids: Tensor | None = None) -> Tensor:
    """Both losses from their definitions, pair by pair: sigmoid where there is a bias."""
    count, scale = len(zimg), log_scale.exp().reshape(())
    same = [[i != j and ids is not None and ids[i] == ids[j] for j in range(count)] for i in range(count)]
    logit = [[scale * zimg[i].dot(ztxt[j]) for j in range(count)] for i in range(count)]
    total = torch.zeros((), dtype=zimg.dtype)
    for i in range(count):
        if bias is not None:
            for j in range(count):
                if not same[i][j]:
                    total = total - F.logsigmoid((1 if i == j else -1) * (logit[i][j] + bias.reshape(())))
            continue
        by_image = torch.stack([logit[i][j] for j in range(count) if not same[i][j]])
        by_text = torch.stack([logit[j][i] for j in range(count) if not same[i][j]])
        total = total + (by_image.logsumexp(0) + by_text.logsumexp(0)) / 2 - logit[i][i]
    return total / count


def assert_equal(found: Gradients, expected: Gradients, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape
        assert (found[name].double() - value.double()).abs().max() < tolerance, name
