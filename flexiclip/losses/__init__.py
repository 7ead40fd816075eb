"""Losses of the global batch: contrastive losses, and losses against targets (class labels or a teacher)."""

from flexiclip.losses.contrastive import CPU_TILE, GPU_TILE, LOSSES, nested_loss, sigmoid_loss, softmax_loss
from flexiclip.losses.targets import (
    CROSS_ENTROPIES,
    classifier_kl,
    cosine_distance,
    kl_rows,
    sigmoid_xent,
    similarity_kl,
    softmax_xent,
)

__all__ = [
    "CPU_TILE",
    "CROSS_ENTROPIES",
    "GPU_TILE",
    "LOSSES",
    "classifier_kl",
    "cosine_distance",
    "kl_rows",
    "nested_loss",
    "sigmoid_loss",
    "sigmoid_xent",
    "similarity_kl",
    "softmax_loss",
    "softmax_xent",
]
