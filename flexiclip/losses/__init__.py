"""Losses of the global batch as functions of what the towers make of it. ranks.py is what the ranks exchange for them."""

from flexiclip.losses.classification import CROSS_ENTROPIES, sigmoid_xent, softmax_xent
from flexiclip.losses.contrastive import CPU_TILE, GPU_TILE, LOSSES, sigmoid_loss, softmax_loss
from flexiclip.losses.distillation import classifier_kl, cosine_distance, kl_rows, similarity_kl
from flexiclip.losses.matryoshka import nested_loss

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
