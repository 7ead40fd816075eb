"""Engines: plain torch here, DeepSpeed in zero.py, behind the same few methods.

Both train an objective's towers with the same AdamW and average gradients over the ranks, so their losses differ only by
rounding. What a step does with them is in step.py.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flexiclip.config import Config
from flexiclip.train.engines.optim import MOMENTS, adamw, moment
from flexiclip.train.engines.towers import Tensors, Trained
from flexiclip.train.processes.ranks import Ranks

# The towers' buffers are constants, which no step need send; torch 2.13 has renamed the flag that says so.
_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_KEEP_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _RENAMED else "broadcast_buffers": False}


class Engine(Protocol):
    """What the loop needs of an engine. Methods marked collective must be called on every rank."""

    towers: Trained

    def embed(self, inputs: Tensors, seqhw: int, last: bool) -> Tensors:
        """Trained.forward, with or without gradients as torch's grad mode says. last: of the step's micro-batches. Collective."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`; that of the step's last micro-batch averages them over the ranks. Collective."""
        ...

    def step(self, lr: float) -> float:
        """Clip, update, clear the gradients; returns the norm of the gradients before clipping. Collective.

        A norm that is not finite updates nothing, no moment and no count of steps, on any rank.
        """
        ...

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every trained parameter, whole, float32, with its name. Collective, and to be run to its end on every rank.

        One at a time: a rank that writes nothing need not hold what it helps to gather.
        """
        ...

    def moments(self) -> Iterator[tuple[str, Tensor]]:
        """The optimiser's moments, whole, float32, as "exp_avg/NAME" and "exp_avg_sq/NAME", zeros at first. As `weights`."""
        ...

    def load_moments(self, moments: dict[str, Tensor], updates: int) -> None:
        """Go on from `moments` after so many updates. Collective."""
        ...


class TorchEngine:
    """DistributedDataParallel (nothing at all for one rank) and fused AdamW."""

    def __init__(self, towers: Trained, config: Config, ranks: Ranks) -> None:
        self.towers, self.clip = towers, config.optimizer.grad_clip
        self.optimizer = adamw(towers, config.optimizer)
        device_ids = [ranks.device] if ranks.device.type == "cuda" else None
        self.module: nn.Module = towers
        if ranks.world > 1:
            # Gradients that are views of what is reduced spare a copy of each, in memory and in every step.
            self.module = DistributedDataParallel(towers, device_ids=device_ids, gradient_as_bucket_view=True, **_KEEP_BUFFERS)

    def embed(self, inputs: Tensors, seqhw: int, last: bool) -> Tensors:
        """See Engine. DDP decides in the forward pass whether the backward pass will reduce."""
        if isinstance(self.module, DistributedDataParallel):
            self.module.require_backward_grad_sync = last
        return self.module(*inputs, seqhw)

    def backward(self, loss: Tensor) -> None:
        """See Engine."""
        loss.backward()

    def step(self, lr: float) -> float:
        """See Engine."""
        norm = clip_gradients(self.optimizer, self.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """See Engine."""
        yield from ((name, p.detach()) for name, p in self.towers.named_parameters())

    def moments(self) -> Iterator[tuple[str, Tensor]]:
        """See Engine."""
        yield from moments_of(self.towers, self.optimizer)

    def load_moments(self, moments: dict[str, Tensor], updates: int) -> None:
        """See Engine."""
        load_moments_into(self.towers, self.optimizer, moments, updates)


def clip_gradients(optimizer: torch.optim.Optimizer, limit: float | None) -> float:
    """Scale the gradients of whole parameters down to the norm `limit`; returns their norm before."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return float(nn.utils.clip_grad_norm_(parameters, float("inf") if limit is None else limit))


def moments_of(towers: Trained, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """The moments of an optimiser that holds whole parameters."""
    trained = [(name, p) for name, p in towers.named_parameters() if p.requires_grad]
    yield from ((f"{key}/{name}", moment(optimizer, p, key)) for key in MOMENTS for name, p in trained)


def load_moments_into(towers: Trained, optimizer: torch.optim.Optimizer, moments: dict[str, Tensor], updates: int) -> None:
    """Restore the moments of an optimiser that holds whole parameters."""
    for name, p in towers.named_parameters():
        if p.requires_grad:
            restored = {key: moments[f"{key}/{name}"].to(p.device) for key in MOMENTS}
            optimizer.state[p] = {"step": torch.tensor(float(updates), device=p.device), **restored}
