"""Losses of the global batch as functions of what the towers make of it. ranks.py is what the ranks exchange for them."""

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
