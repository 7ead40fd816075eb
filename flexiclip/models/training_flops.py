"""FLOPs of training on one image-text pair, from the forward FLOPs of the towers (flops.py) and from what trains.

    forward          every tower once; a locked text tower's features are computed before the first step (train/text_features.py)
    backward         two products for each of the forward's, where a tower trains; one in a projection whose tower is locked
    gradient cache   one more forward of what the engine holds, when a step has several micro-batches (train/step.py)
    recomputation    one more forward of the blocks that train, without their last layer, under activation checkpointing

Source: the factor of two, Kaplan et al. (arXiv 2001.08361, section 2.1). Recomputation is work but not model FLOPs: an MFU, and a
run whose length is given in FLOPs, count `model` alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from flexiclip.config import Config, ImageTowerConfig, ModelConfig, TextTowerConfig
from flexiclip.models.flops import TowerFlops, foreign_text_flops, image_flops, projection_flops, text_flops
from flexiclip.models.text import TextTower, build_text_tower
from flexiclip.models.variants import shape_of


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


@dataclass(frozen=True)
class TextCost:
    """What the text half takes of a caption of full length."""

    tower: TowerFlops
    width: int  # of the tower's features
    cached: bool  # the features of a locked tower are computed once, before the first step


KEPT_TEXT_FEATURES = 2 << 30
"""Bytes of a frozen text tower's features that a run keeps; with more captions the tower runs in every step."""


def text_cost(config: Config, tower: TextTower | None = None, samples: int | None = None) -> TextCost | None:
    """Of a recipe's text half; None where it has none. tower: on any device; by default, where it is needed, built on meta.

    samples: of an epoch, taken for as many captions; None: few enough for a frozen tower's features to be kept.
    Raises UserError for a tower of another library whose FLOPs cannot be counted, or whose configuration is not here.
    """
    section = config.model.text
    if section is None:
        return None
    if section.kind == "transformer":
        flops = text_flops(section, section.context_length or config.tokenizer.context_length)
        width = shape_of(section, "model.text").width
    else:
        if tower is None:
            with torch.device("meta"):
                tower = build_text_tower(section, pretrained=False)
        flops, width = foreign_text_flops(tower, int(tower.context_length)), int(tower.width)
    kept = config.model.text_frozen and not config.data.sequential and 4 * width * (samples or 0) <= KEPT_TEXT_FEATURES
    return TextCost(flops, width, kept)


def pair_flops(
    config: ModelConfig, text: TextCost | None, seqhw: int, *, several: bool = False, checkpointing: bool = False
) -> PairFlops:
    """A pair's share of a step at grid side `seqhw`.

    several: the step has more than one micro-batch, so the gradient cache is at work. checkpointing: activations are recomputed.
    """
    image, ends = image_flops(config.image, seqhw), 1 + len(config.image.exits)
    image = replace(image, head=ends * image.head)
    projection = ends * projection_flops(config.image, shape_of(config.image, "model.image").width, config.embed_dim)
    halves: list[tuple[ImageTowerConfig | TextTowerConfig, TowerFlops, int, bool]] = [(config.image, image, projection, False)]
    if text is not None and config.text is not None:
        halves.append((config.text, text.tower, projection_flops(config.text, text.width, config.embed_dim), text.cached))
    forward = backward = again = recomputed = 0
    for section, tower, projection, cached in halves:
        trains = not section.frozen
        forward += projection + (0 if cached else tower.forward)
        backward += (2 if trains else 1) * projection + tower.backward(section.open_blocks)
        again += projection + (tower.forward if trains else 0)
        recomputed += tower.recomputation(section.open_blocks)
    return PairFlops(forward, backward, again if several else 0, recomputed if checkpointing else 0)
