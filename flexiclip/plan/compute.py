"""FLOPs of the tiled loss (losses/), which follow from its code; models/training_flops.py has those of the towers.

The loss computes the b x N logits twice and their gradients by two products: 8 b N D for softmax. Sigmoid needs 6 b N D.
"""

from __future__ import annotations

from flexiclip.config import Config


def loss_flops(config: Config, local: int, world: int) -> int:
    """FLOPs of the loss on one rank: `local` images against all captions, at every exit and every width that has a loss."""
    products = (8 if config.loss.kind == "softmax" else 6) * (1 + len(config.model.image.exits))
    return products * local * (local * world) * sum(config.loss.all_widths(config.model.embed_dim))
