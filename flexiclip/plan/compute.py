"""FLOPs of the tiled loss (losses/): b x N logits twice and two products for their gradients, softmax 8 b N D; sigmoid 6 b N D.

Source: the code. Those of the towers stand in models/training_flops.py.
"""

from __future__ import annotations


def loss_flops(kind: str, local: int, world: int, embed_dim: int) -> int:
    """Of the loss on one rank: `local` images against all captions."""
    return (8 if kind == "softmax" else 6) * local * (local * world) * embed_dim
