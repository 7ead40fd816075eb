"""What the step knows of an objective.

Shapes: b a rank's share of the global batch, B a micro-batch of it, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor, nn

from flexiclip.data.batch import TENSORS, Batch
from flexiclip.train.engines.towers import Tensors, Trained

_NOT_READ = torch.empty(0)


@dataclass(frozen=True)
class Inputs:
    """A rank's share of a global batch, or some of its rows, on the rank's device."""

    images: Tensor  # [b, 3, H, W] uint8
    tokens: Tensor  # [b, L] int64
    caption_ids: Tensor  # [b] int64
    labels: Tensor = _NOT_READ  # [b, M] int64: the classes of each image
    shares: Tensor = _NOT_READ  # [b, M] float32: how much of each
    captions: Sequence[str] = ()

    def __getitem__(self, rows: slice) -> Inputs:
        return Inputs(*(getattr(self, field.name)[rows] for field in fields(self)))

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> Inputs:
        """Images stay uint8 until they are encoded (towers.py)."""
        images, tokens, ids, labels, shares = (getattr(batch, name).to(device, non_blocking=True) for name in TENSORS)
        return cls(images, tokens, ids, labels, shares, batch.captions)


@dataclass(frozen=True)
class Micro:
    """A micro-batch as the step works on it. Every tensor's first dimension is B."""

    inputs: Tensors  # what the engine's towers take
    targets: Tensors  # what the loss compares their outputs with


class Objective(Protocol):
    """What the towers compute of a micro-batch, and the loss of what they gave for the global batch."""

    @property
    def towers(self) -> Trained:
        """What the engine trains."""
        ...

    @property
    def scalars(self) -> Sequence[nn.Parameter]:
        """Of the loss: logit_scale, logit_bias, as many as there are. They have an optimiser of their own (optim.py)."""
        ...

    def prepare(self, inputs: Inputs, seqhw: int) -> Micro:
        """The part of a micro-batch that needs no gradients, computed once a step: frozen towers, targets."""
        ...

    def loss(self, outputs: Tensors, targets: Tensors) -> Tensor:
        """The 0-D loss of the global batch from this rank's rows, [b, ...] each; differentiable in outputs and scalars.

        The gradients are those of the global loss, the loss is the same on every rank. Collective.
        """
        ...
