"""FLOPs of the tiled loss (losses/): b x N logits twice and two products for their gradients, softmax 8 b N D; sigmoid 6 b N D.

Source: the code. Those of the towers stand in models/training_flops.py.
"""

from __future__ import annotations

from flexiclip.config import Config


def loss_flops(config: Config, local: int, world: int) -> int:
    """Of the loss on one rank: `local` images against all captions, at every exit and every width that it is taken of."""
    products = (8 if config.loss.kind == "softmax" else 6) * (1 + len(config.model.image.exits))
    return products * local * (local * world) * sum(config.loss.all_widths(config.model.embed_dim))
