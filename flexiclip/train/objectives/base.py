"""What the step knows of an objective.

Shapes: b a rank's share of the global batch, B a micro-batch of it, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from flexiclip.train.engines.towers import Tensors, Trained


@dataclass(frozen=True)
class Inputs:
    """A rank's share of a global batch, or some of its rows, on the rank's device."""

    images: Tensor  # [b, 3, H, W] uint8
    tokens: Tensor  # [b, L] int64
    caption_ids: Tensor  # [b] int64

    def __getitem__(self, rows: slice) -> Inputs:
        return Inputs(self.images[rows], self.tokens[rows], self.caption_ids[rows])


@dataclass(frozen=True)
class Micro:
    """A micro-batch as the step works on it. Every tensor's first dimension is B."""

    inputs: Tensors  # what the engine's towers take
    targets: Tensors  # what the loss compares their outputs with


class Objective(Protocol):
    """What the towers compute of a micro-batch, and the loss of what they gave for the global batch."""

    towers: Trained
    scalars: Sequence[nn.Parameter]
    """Of the loss: logit_scale, logit_bias, as many as there are. They have an optimiser of their own (optim.py)."""

    def prepare(self, inputs: Inputs, seqhw: int) -> Micro:
        """The part of a micro-batch that needs no gradients, computed once a step: frozen towers, targets."""
        ...

    def loss(self, outputs: Tensors, targets: Tensors) -> Tensor:
        """The 0-D loss of the global batch from this rank's rows, [b, ...] each; differentiable in outputs and scalars.

        The gradients are those of the global loss, the loss is the same on every rank. Collective.
        """
        ...
