"""Cross-entropies of a classifier over the global batch, averaged over its images.

In a distributed run each rank hands in its own rows, and every rank gets the loss of the whole batch with the gradients of that
loss by its own rows, as in contrastive.py.

Shapes: b local rows, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from flexiclip.distributed import mean_over_ranks


def softmax_xent(logits: Tensor, targets: Tensor) -> Tensor:
    """-sum_c targets log softmax(logits). logits, targets: [b, C], targets the shares of the classes; returns the 0-D mean."""
    return mean_over_ranks(F.cross_entropy(logits, targets, reduction="none"))


def sigmoid_xent(logits: Tensor, targets: Tensor) -> Tensor:
    """Each class a decision of its own, summed over the classes (big_vision's sigmoid_xent). Otherwise as softmax_xent."""
    return mean_over_ranks(F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1))


CROSS_ENTROPIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"softmax": softmax_xent, "sigmoid": sigmoid_xent}
