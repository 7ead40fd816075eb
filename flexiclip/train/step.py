"""One training step, the same for every engine, number of ranks and micro-batches (GradCache, arXiv 2101.06983).

1. Embed each micro-batch: with gradients if it is the only one, without otherwise.
2. Loss on the detached embeddings of the global batch, which gives dz and the gradients of the scalars.
3. Backward of <z, dz> through the engine, embedding each micro-batch again, under the same random state, when there are several.
4. Step the engine's optimiser, and the scalars' own.

The loss never sees a model and the engine never sees the loss: tiling, gradient caching, ZeRO and locks do not know of each
other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flexiclip.config import TrainConfig
from flexiclip.data.draws import Draw, below
from flexiclip.train.engine import Engine
from flexiclip.train.optim import ScalarOptimizer
from flexiclip.train.ranks import Ranks
from flexiclip.train.towers import LockedTowers

LossFunction = Callable[..., Tensor]
"""(zimg, ztxt, *scalars, caption_ids=) -> the loss of the global batch."""


@dataclass
class Inputs:
    """A rank's share of a global batch on its device."""

    images: Tensor  # [b, 3, H, W] uint8
    tokens: Tensor  # [b, L] int64
    caption_ids: Tensor  # [b] int64


@dataclass(frozen=True)
class Stepper:
    """All that a step needs besides its batch."""

    engine: Engine
    locked: LockedTowers
    scalars: ScalarOptimizer
    loss: LossFunction
    mask_identical: bool
    micro_batch: Callable[[int], int]
    """seqhw -> samples encoded at once, the same on every rank."""
    seed: int
    ranks: Ranks

    def __call__(self, inputs: Inputs, seqhw: int, step: int, lr: float) -> tuple[float, float]:
        """Take one step; returns the loss before it and the norm of the towers' gradients."""
        size = self.micro_batch(seqhw)
        rows = [slice(i, i + size) for i in range(0, len(inputs.images), size)]
        micro = [self.locked(inputs.images[r], inputs.tokens[r], inputs.caption_ids[r], seqhw) for r in rows]
        single = len(micro) == 1

        def embed(i: int) -> tuple[Tensor, Tensor]:
            """Dropout, where a tower has it, draws the same numbers in both passes and after a resume."""
            torch.manual_seed(below(1 << 63, self.seed, Draw.DROPOUT, step, self.ranks.rank, i))
            return self.engine.embed(*micro[i], seqhw, last=i == len(micro) - 1)

        with torch.set_grad_enabled(single):
            embedded = [embed(i) for i in range(len(micro))]
        zimg, ztxt = (torch.cat([pair[half].detach() for pair in embedded]) for half in (0, 1))
        loss, dzimg, dztxt, dscalars = self._loss(zimg, ztxt, inputs.caption_ids)

        for i, r in enumerate(rows):
            zi, zt = embedded[i] if single else embed(i)
            # The engines average over the ranks; dz is that of the global loss already.
            products = [(z * dz[r]).sum() for z, dz in ((zi, dzimg), (zt, dztxt)) if z.requires_grad]
            self.engine.backward(self.ranks.world * torch.stack(products).sum())
        norm = self.engine.step(lr)
        self.scalars.step(lr, dscalars)
        return float(loss), norm

    def _loss(self, zimg: Tensor, ztxt: Tensor, caption_ids: Tensor) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        zimg.requires_grad_()
        ztxt.requires_grad_()
        scalars = self.scalars.scalars
        loss = self.loss(zimg, ztxt, *scalars, caption_ids=caption_ids if self.mask_identical else None)
        dzimg, dztxt, *dscalars = torch.autograd.grad(loss, [zimg, ztxt, *scalars])
        return loss.detach(), dzimg, dztxt, list(dscalars)


def micro_batches(train: TrainConfig, world: int) -> Callable[[int], int]:
    """seqhw -> samples that a rank encodes at once: a fixed number, what a budget of image tokens holds, or its whole share."""
    local = train.global_batch_size // world
    if train.micro_tokens is not None:
        budget = train.micro_tokens
        return lambda seqhw: min(local, max(1, budget // seqhw**2))
    return lambda _: train.micro_batch_size or local
