"""FLOPs of a training step, from the forward FLOPs of the towers (models/flops.py) and from what trains.

    forward          every tower once; a locked text tower's features are computed before the first step (train/text_features.py)
    backward         two products for each of the forward's, where a tower trains; one in a projection whose tower is locked
    gradient cache   one more forward of what the engine holds, when a step has several micro-batches (train/step.py)
    recomputation    one more forward of the blocks that train, without their last layer, under activation checkpointing
    loss             tiled (losses/): b x N logits twice and two products for their gradients, softmax 8 b N D; sigmoid 6 b N D

Sources: the factor of two, Kaplan et al. (arXiv 2001.08361, section 2.1); the loss, from the code. Recomputation is work but not
model FLOPs: an MFU counts `model` alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from flexiclip.models.flops import TowerFlops
from flexiclip.plan.towers import Model, open_blocks


@dataclass(frozen=True)
class PairFlops:
    """FLOPs of one image-text pair in a step, without the loss."""

    forward: int
    backward: int
    gradient_cache: int
    recomputation: int

    @property
    def model(self) -> int:
        """Forward and backward: what the mathematics asks for."""
        return self.forward + self.backward

    @property
    def total(self) -> int:
        """All that is computed."""
        return self.model + self.gradient_cache + self.recomputation


def pair_flops(model: Model, seqhw: int, several: bool, checkpointing: bool) -> PairFlops:
    """A pair's share of a step. several: the step has more than one micro-batch, so the gradient cache is at work."""
    config = model.config
    halves = (
        ("image", model.image_flops(seqhw), config.model.image, False),
        ("text", model.text_flops(), model.text_config, text_is_cached(model)),
    )
    forward = backward = again = recomputed = 0
    for half, tower, section, cached in halves:
        projection, open_ = model.projection_flops(half), open_blocks(section)
        trains = open_ != 0
        forward += projection + (0 if cached else tower.forward)
        backward += (2 if trains else 1) * projection + tower.backward(open_)
        again += projection + (tower.forward if trains else 0)
        recomputed += _recomputed(tower, open_)
    return PairFlops(forward, backward, again if several else 0, recomputed if checkpointing else 0)


def _recomputed(tower: TowerFlops, open_: int | None) -> int:
    return tower.recomputation(open_)


def loss_flops(kind: str, local: int, world: int, embed_dim: int) -> int:
    """Of the tiled loss on one rank: `local` images against all captions."""
    return (8 if kind == "softmax" else 6) * local * (local * world) * embed_dim


def text_is_cached(model: Model) -> bool:
    """Whether the features of a locked text tower are computed once, before the first step."""
    return model.config.model.text_frozen and not model.config.data.sequential
