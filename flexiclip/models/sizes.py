"""Checks, before a model is built, that its weight file is large enough for the model that the config describes.

A config of a few lines may ask for terabytes or for a billion blocks, but a weight file of such a size is not written by
accident.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from flexiclip.config import ImageTowerConfig, ModelConfig, TextTowerConfig
from flexiclip.config.schema import pair
from flexiclip.errors import UserError
from flexiclip.models.variants import shape_of

M = TypeVar("M", bound=nn.Module)

MOST_LAYERS = 1000
_SLACK = 2**20  # parameters that a model may have in addition to the stored ones, such as an unused pooler
_MASKS = 2**26  # numbers that its buffers may have: attention masks, positions


def check_sizes(config: ModelConfig, stored: int, where: str) -> None:
    """Raise UserError if our own towers need more parameters than the file with their weights has bytes (`stored`)."""
    image, text = config.image, config.text
    (p, q), (gh, gw) = pair(image.base_patch_size), pair(image.base_grid)
    width = shape_of(image, where).width
    numbers = width * (3 * p * q + gh * gw + config.embed_dim) + _blocks(image, where)
    if text is not None and text.kind == "transformer":
        rows = (text.vocab_size or 0) + (text.context_length or 0) + config.embed_dim
        numbers += shape_of(text, where).width * rows + _blocks(text, where)
    _check_room(numbers, stored, where)


def _blocks(config: ImageTowerConfig | TextTowerConfig, where: str) -> int:
    """Return the number of parameters in the matrices of all blocks."""
    shape = shape_of(config, where)
    check_layers(shape.depth, where)
    return shape.depth * shape.width * (4 * shape.width + 2 * shape.mlp_dim)


def check_layers(layers: object, where: str) -> None:
    """Raise UserError unless `layers` is an integer that is at most MOST_LAYERS."""
    if not isinstance(layers, int) or layers > MOST_LAYERS:
        raise UserError(f"{where}: a tower of {layers!r} layers; the most are {MOST_LAYERS}")


def build_within(build: Callable[[], M], weights: Path, where: str) -> M:
    """Return the result of `build`, or raise UserError if it needs more parameters than the file `weights` can hold."""
    check_build(build, weights, where)
    return build()


def check_build(build: Callable[[], nn.Module], weights: Path, where: str) -> None:
    """Raise UserError if the result of `build` needs more parameters than the file `weights` can hold.

    The model is built on the meta device, which allocates nothing.
    """
    with torch.device("meta"):
        shell = build()
    if weights.is_file():  # a folder with only an architecture has no weights
        stored = weights.stat().st_size
        _check_room(sum(p.numel() for p in shell.parameters()), stored, where)
        _check_room(sum(b.numel() for b in shell.buffers()) - _MASKS, stored, where)


def _check_room(numbers: int, stored: int, where: str) -> None:
    """Raise UserError if there are more numbers than bytes, with some slack."""
    if numbers > stored + _SLACK:
        raise UserError(
            f"{where}: the model of the config has {numbers} parameters, its weights of {stored} bytes have no room for them"
        )
