"""Losses of the global batch as functions of what the towers make of it. ranks.py is what the ranks exchange for them."""

from flexiclip.losses.contrastive import CPU_TILE, GPU_TILE, LOSSES, sigmoid_loss, softmax_loss

__all__ = ["CPU_TILE", "GPU_TILE", "LOSSES", "sigmoid_loss", "softmax_loss"]
