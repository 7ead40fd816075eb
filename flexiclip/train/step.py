"""One training step, the same for every engine, number of ranks and micro-batches (GradCache, arXiv 2101.06983).

1. Embed each micro-batch: with gradients if it is the only one, otherwise without.
2. Compute the objective's loss on the detached outputs of the global batch, which gives dz and the gradients of the scalars.
3. Go backward from <z, dz> through the engine. If there are several micro-batches, first embed each one again under the same
   random state.
4. Step the engine's optimizer, and that of the scalars.

The loss never sees a model and the engine never sees the loss, so tiling, gradient caching, ZeRO and locked towers are
independent of each other.
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
    """The result of a step."""

    loss: float
    """Loss of the global batch, before the update."""
    norm: float
    """Norm of the towers' gradients, before clipping."""
    fault: str | None = None
    """For a refused step: which of its numbers were not finite."""


@dataclass(frozen=True)
class Stepper:
    """Takes steps. It holds everything that a step needs except for its batch."""

    objective: Objective
    engine: Engine
    scalars: ScalarOptimizer
    micro_batch: Callable[[int], int]
    """seqhw -> number of samples encoded at once, the same on every rank."""
    seed: int
    ranks: Ranks

    def __call__(self, inputs: Inputs, seqhw: int, step: int, lr: float) -> Outcome:
        """Take one step. If a number in it is not finite, no weight and no moment changes, and the outcome names the fault.

        inputs: this rank's share of the global batch. step: number of finished steps. Collective.
        """
        size = self.micro_batch(seqhw)
        rows = [slice(i, i + size) for i in range(0, len(inputs.images), size)]
        micro = [self.objective.prepare(inputs[r], seqhw) for r in rows]
        share, single = _Share(self, rows, micro, seqhw, step), len(micro) == 1

        with torch.set_grad_enabled(single):
            embedded = [share.embed(i) for i in range(len(micro))]
        z = tuple(torch.cat([part.detach() for part in parts]) for parts in zip(*embedded, strict=True))
        loss, dz, dscalars = self._loss(z, tuple(map(torch.cat, zip(*(m.targets for m in micro), strict=True))))
        for i in range(len(micro)):
            share.backward(i, embedded[i] if single else share.embed(i), dz)
        norm = self.engine.step(lr)
        if math.isfinite(norm):
            self.scalars.step(lr, dscalars)
            return Outcome(float(loss), norm)

        bad_towers = partial(share.towers_of_bad_gradients, dz)
        fault = nonfinite.locate(self.ranks, z, loss, self.scalars.scalars, dscalars, dz, bad_towers)
        return Outcome(float(loss), norm, fault)

    def _loss(self, z: Tensors, targets: Tensors) -> tuple[Tensor, Tensors, list[Tensor]]:
        """Return the loss, its gradients with respect to the towers' outputs, and those with respect to the scalars.

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

    def embed(self, i: int, averaged: bool = True) -> Tensors:
        """Return the towers' outputs of micro-batch i. Dropout, if a tower has it, is the same in every pass and after a resume.

        averaged: whether the backward pass of the last micro-batch averages the gradients over the ranks.
        """
        stepper = self.stepper
        torch.manual_seed(below(1 << 63, stepper.seed, Draw.DROPOUT, self.step, stepper.ranks.rank, i))
        return stepper.engine.embed(self.micro[i].inputs, self.seqhw, last=averaged and i == len(self.micro) - 1)

    def backward(self, i: int, z: Tensors, dz: Tensors) -> None:
        """Go backward through micro-batch i.

        dz is the gradient of the global loss, but engines average over the ranks, so it is multiplied by their number.
        """
        products = [(half * d[self.rows[i]]).sum() for half, d in zip(z, dz, strict=True) if half.requires_grad]
        self.stepper.engine.backward(self.stepper.ranks.world * torch.stack(products).sum())

    def towers_of_bad_gradients(self, dz: Tensors) -> list[str]:
        """Go backward once more, watch the gradients that reach each tower, and leave no gradient behind. Collective."""
        engine = self.stepper.engine
        with nonfinite.GradientWatch(engine.towers) as watch:
            for i in range(len(self.micro)):
                self.backward(i, self.embed(i, averaged=False), dz)
        engine.discard_gradients()
        return watch.bad(self.stepper.ranks)
