"""AdamW with decay on matrices only, and the tiny optimiser of logit_scale and logit_bias.

Whether the towers run in bf16: what `train.precision` says, and for `auto` what the hardware of all ranks has.

Engines: plain torch here, DeepSpeed in deepspeed.py, behind the same few methods.

Both train an objective's towers with the same AdamW and average gradients over the ranks, so their losses differ only by
rounding. What a step does with them is in step.py.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flexiclip.config import Config, OptimizerConfig
from flexiclip.train.ranks import Ranks
from flexiclip.train.towers import Tensors, Trained

NO_DECAY = ("posemb", "positional_embedding", "cls", "cls_emb", "probe")
"""Endings of the names of learned vectors that are no weights of a layer: ours and open_clip's."""

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW remembers of each parameter, besides the number of its updates."""


def adamw(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters. Norms, biases, scalars, positions, probes and embedding tables are not decayed."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    tables = {p for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}  # whatever a library calls them
    matrices = {p for name, p in named if p.ndim >= 2 and not name.endswith(NO_DECAY)} - tables
    decayed = [p for _, p in named if p in matrices]
    kept = [p for _, p in named if p not in matrices]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    full = [group for group in groups if group["params"]]  # DeepSpeed raises on an empty group
    return torch.optim.AdamW(full, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def moment(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, key: str) -> Tensor:
    """One of a parameter's MOMENTS: zeros before its first update."""
    return optimizer.state[parameter][key] if parameter in optimizer.state else torch.zeros_like(parameter)


class ScalarOptimizer:
    """Float32 AdamW without decay for the scalars of the loss.

    Every rank holds the same global loss, so their gradients need no reduction, and because no engine keeps a second copy they
    may be clamped after the step: logit_scale to [0, log(maximum)], as CLIP does.
    """

    def __init__(self, scalars: Sequence[nn.Parameter], config: OptimizerConfig, logit_scale_max: float) -> None:
        self.scalars, self.ceiling = list(scalars), math.log(logit_scale_max)
        # As a group: an objective may have no scalars, and of parameters alone AdamW wants at least one.
        self.adamw = torch.optim.AdamW(
            [{"params": self.scalars}], lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=0.0
        )

    def step(self, lr: float, gradients: list[Tensor]) -> None:
        """One step on the gradients of logit_scale and logit_bias, as many of them as there are."""
        for parameter, gradient in zip(self.scalars, gradients, strict=True):
            parameter.grad = gradient
        self.adamw.param_groups[0]["lr"] = lr
        self.adamw.step()
        self.adamw.zero_grad()
        with torch.no_grad():
            for scale in self.scalars[:1]:
                scale.clamp_(0.0, self.ceiling)

    def state(self) -> dict[str, Tensor]:
        """Moments by name and index."""
        return {f"{key}/{i}": moment(self.adamw, p, key) for i, p in enumerate(self.scalars) for key in MOMENTS}

    def load(self, state: dict[str, Tensor], updates: int) -> None:
        """Go on from `state` after so many updates."""
        for i, p in enumerate(self.scalars):
            restored: dict[str, Any] = {key: state[f"{key}/{i}"].to(p.device) for key in MOMENTS}
            self.adamw.state[p] = {"step": torch.tensor(float(updates)), **restored}


def uses_bf16(precision: str, ranks: Ranks) -> bool:
    """Whether to autocast to bf16. Says what `auto` has come to, and what bf16 costs without hardware for it. Collective.

    Ranks of different hardware agree: one that has no bf16 makes `auto` fp32 for all.
    """
    native = all(ranks.collect([has_bf16(ranks.device)]))
    if precision == "auto":
        ranks.say(f"train.precision=auto: {'bf16' if native else 'fp32, as the hardware has no bf16 arithmetic'}")
        return native
    if precision == "bf16" and not native:
        ranks.say("this hardware has no bf16 arithmetic: train.precision=fp32 (or auto) is several times as fast here")
    return precision == "bf16"


def has_bf16(device: torch.device) -> bool:
    """Whether matrix products of bfloat16 are the hardware's own (GPUs from Ampere on, CPUs from AVX-512 on)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # without it they run in plain loops, a tenth as fast as fp32's


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

    def discard_gradients(self) -> None:
        """Clear the gradients without an update: no weight, no moment and no count of steps changes. Collective."""
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
        self.discard_gradients()
        return norm

    def discard_gradients(self) -> None:
        """See Engine."""
        self.optimizer.zero_grad(set_to_none=True)

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
