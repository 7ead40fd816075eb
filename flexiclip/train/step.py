"""One training step, the same for every engine, number of ranks and micro-batches (GradCache, arXiv 2101.06983).

1. Embed each micro-batch: with gradients if it is the only one, without otherwise.
2. The objective's loss on the detached outputs of the global batch, which gives dz and the gradients of the scalars.
3. Backward of <z, dz> through the engine, embedding each micro-batch again, under the same random state, when there are several.
4. Step the engine's optimiser, and the scalars' own.

The loss never sees a model and the engine never sees the loss: tiling, gradient caching, ZeRO and locks do not know of each
other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from flexiclip.draws import Draw, below
from flexiclip.train import nonfinite
from flexiclip.train.engine import Engine, ScalarOptimizer
from flexiclip.train.objectives import Inputs, Micro, Objective
from flexiclip.train.ranks import Ranks
from flexiclip.train.towers import Tensors


@dataclass(frozen=True)
class Outcome:
    """What came of a step."""

    loss: float
    """Before the step, of the global batch."""
    norm: float
    """Of the towers' gradients, before clipping."""
    fault: str | None = None
    """Which of its numbers were not finite, in a step that was refused."""


@dataclass(frozen=True)
class Stepper:
    """All that a step needs besides its batch."""

    objective: Objective
    engine: Engine
    scalars: ScalarOptimizer
    micro_batch: Callable[[int], int]
    """seqhw -> samples encoded at once, the same on every rank."""
    seed: int
    ranks: Ranks

    def __call__(self, inputs: Inputs, seqhw: int, step: int, lr: float) -> Outcome:
        """Take one step, or, where a number in it is not finite, none: then no weight and no moment is touched."""
        size = self.micro_batch(seqhw)
        rows = [slice(i, i + size) for i in range(0, len(inputs.images), size)]
        micro = [self.objective.prepare(inputs[r], seqhw) for r in rows]
        share = _Share(self, rows, micro, seqhw, step)

        with torch.set_grad_enabled(share.single):
            embedded = [share.embed(i) for i in range(len(micro))]
        z = tuple(torch.cat([part.detach() for part in parts]) for parts in zip(*embedded, strict=True))
        loss, dz, dscalars = self._loss(z, tuple(map(torch.cat, zip(*(m.targets for m in micro), strict=True))))
        for i in range(len(micro)):
            share.backward(i, embedded[i] if share.single else share.embed(i), dz)
        norm = self.engine.step(lr)
        if math.isfinite(norm):
            self.scalars.step(lr, dscalars)
            return Outcome(float(loss), norm)

        bad_towers = partial(share.towers_of_bad_gradients, dz)
        fault = nonfinite.locate(self.ranks, z, loss, self.scalars.scalars, dscalars, dz, bad_towers)
        return Outcome(float(loss), norm, fault)

    def _loss(self, z: Tensors, targets: Tensors) -> tuple[Tensor, Tensors, list[Tensor]]:
        """The loss, its gradients by the towers' outputs, and its gradients by the scalars.

        If the loss or a scalar's gradient is not finite, every dz is NaN (see `nonfinite.marked`).
        """
        for output in z:
            output.requires_grad_()
        loss = self.objective.loss(z, targets)
        gradients = torch.autograd.grad(loss, [*z, *self.scalars.scalars])
        dz, dscalars = gradients[: len(z)], list(gradients[len(z) :])
        return loss.detach(), nonfinite.marked(dz, loss.detach(), *dscalars), dscalars


@dataclass(frozen=True)
class _Share:
    """A rank's share of a step, in micro-batches."""

    stepper: Stepper
    rows: list[slice]
    micro: list[Micro]
    seqhw: int
    step: int

    @property
    def single(self) -> bool:
        """Whether one micro-batch is the whole share, which is then embedded once."""
        return len(self.micro) == 1

    def embed(self, i: int, averaged: bool = True) -> Tensors:
        """What the towers make of micro-batch i. Dropout, where a tower has it, draws the same in every pass and after a resume.

        averaged: whether the backward pass of the last one averages the gradients over the ranks.
        """
        stepper = self.stepper
        torch.manual_seed(below(1 << 63, stepper.seed, Draw.DROPOUT, self.step, stepper.ranks.rank, i))
        return stepper.engine.embed(self.micro[i].inputs, self.seqhw, last=averaged and i == len(self.micro) - 1)

    def backward(self, i: int, z: Tensors, dz: Tensors) -> None:
        """Send dz through micro-batch i. The engines average over the ranks; dz is that of the global loss already."""
        products = [(half * d[self.rows[i]]).sum() for half, d in zip(z, dz, strict=True) if half.requires_grad]
        self.stepper.engine.backward(self.stepper.ranks.world * torch.stack(products).sum())

    def towers_of_bad_gradients(self, dz: Tensors) -> list[str]:
        """Go backward once more, now watching what reaches each tower, and leave no gradient behind. Collective."""
        engine = self.stepper.engine
        with nonfinite.GradientWatch(engine.towers) as watch:
            for i in range(len(self.micro)):
                self.backward(i, self.embed(i, averaged=False), dz)
        engine.discard_gradients()
        return watch.bad(self.stepper.ranks)
