"""The interface of an engine and the plain torch engine, with the optimizers and the choice of the precision.

An engine trains the towers of an objective: it runs them, averages their gradients over the ranks, and updates them. The other
engine is in deepspeed.py. Both use the same AdamW, so their losses differ only by rounding. step.py calls the engines.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flexiclip.config import OptimizerConfig
from flexiclip.train.ranks import Ranks
from flexiclip.train.towers import Tensors, Trained

NO_DECAY = ("posemb", "positional_embedding", "cls", "cls_emb", "probe")
"""Endings of the names of learned vectors that do not belong to a layer, in our models and in open_clip's."""

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of a parameter, besides the number of updates."""


def adamw(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters, with weight decay only on the matrices of layers.

    Norms, biases, scalars, positions, probes and embedding tables are not decayed.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    # Embedding tables are found by type, because libraries name them differently.
    tables = {p for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    matrices = {p for name, p in named if p.ndim >= 2 and not name.endswith(NO_DECAY)} - tables
    decayed = [p for _, p in named if p in matrices]
    kept = [p for _, p in named if p not in matrices]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    full = [group for group in groups if group["params"]]  # DeepSpeed raises on an empty group
    return torch.optim.AdamW(full, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


class ScalarOptimizer:
    """Float32 AdamW without decay for the scalars of the loss.

    Every rank computes the same global loss, so the scalars' gradients need no reduction. No engine keeps a second copy of the
    scalars, so they can be clamped after the step: logit_scale to [0, log(maximum)], as CLIP does.
    """

    def __init__(self, scalars: Sequence[nn.Parameter], config: OptimizerConfig, logit_scale_max: float) -> None:
        self.scalars, self.ceiling = list(scalars), math.log(logit_scale_max)
        # The parameters are passed as a group, because AdamW rejects an empty list, and an objective may have no scalars.
        self.adamw = torch.optim.AdamW(
            [{"params": self.scalars}], lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=0.0
        )

    def step(self, lr: float, gradients: list[Tensor]) -> None:
        """Take one step. gradients: one for each scalar (logit_scale, then logit_bias), in the order of `scalars`."""
        for parameter, gradient in zip(self.scalars, gradients, strict=True):
            parameter.grad = gradient
        self.adamw.param_groups[0]["lr"] = lr
        self.adamw.step()
        self.adamw.zero_grad()
        with torch.no_grad():
            for scale in self.scalars[:1]:
                scale.clamp_(0.0, self.ceiling)

    def state(self) -> dict[str, Tensor]:
        """Return the moments as "exp_avg/INDEX" and "exp_avg_sq/INDEX"."""
        return dict(moments_of(self._named(), self.adamw))

    def load(self, state: dict[str, Tensor], updates: int) -> None:
        """Go on from `state`, as after `updates` updates."""
        load_moments_into(self._named(), self.adamw, state, updates)

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return [(str(i), p) for i, p in enumerate(self.scalars)]


def uses_bf16(precision: str, ranks: Ranks) -> bool:
    """Whether the towers run under bf16 autocast, by `train.precision`. Collective.

    With `auto`, all ranks use fp32 if the hardware of one of them has no bf16 arithmetic. The main rank prints what `auto` means
    here, and warns about bf16 on hardware without it.
    """
    native = all(ranks.collect([has_bf16(ranks.device)]))
    if precision == "auto":
        ranks.say(f"train.precision=auto: {'bf16' if native else 'fp32, as the hardware has no bf16 arithmetic'}")
        return native
    if precision == "bf16" and not native:
        ranks.say("this hardware has no bf16 arithmetic: train.precision=fp32 (or auto) is several times as fast here")
    return precision == "bf16"


def has_bf16(device: torch.device) -> bool:
    """Whether the hardware has bfloat16 matrix products: GPUs since Ampere, CPUs since AVX-512."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # otherwise they run in plain loops, ten times slower than fp32


# The towers' buffers are constants, so no step needs to send them. torch 2.13 renamed the flag for this.
_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_KEEP_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _RENAMED else "broadcast_buffers": False}


class Engine(Protocol):
    """The interface of an engine. Methods marked as collective must be called on every rank."""

    towers: Trained

    def embed(self, inputs: Tensors, seqhw: int, last: bool) -> Tensors:
        """Run the trained towers on one micro-batch, with gradients if torch's grad mode is on. Collective.

        Returns the outputs of Trained.forward. last: this is the step's last micro-batch, after which gradients are averaged.
        """

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`. For the step's last micro-batch, also average them over the ranks. Collective."""

    def step(self, lr: float) -> float:
        """Clip, update, and clear the gradients. Returns the norm of the gradients before clipping. Collective.

        If the norm is not finite, no rank updates anything: no weight, no moment and no count of steps.
        """

    def discard_gradients(self) -> None:
        """Clear the gradients without an update: no weight, no moment and no count of steps changes. Collective."""

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every parameter of the towers unsharded, float32, with its name.

        Collective: every rank must exhaust the iterator. Parameters come one at a time, so that a rank that does not write them
        need not hold them all.
        """

    def moments(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the optimizer's moments unsharded, float32, as "exp_avg/NAME" and "exp_avg_sq/NAME".

        They are zero before the first step. Collective: every rank must exhaust the iterator, as with `weights`.
        """

    def load_moments(self, moments: dict[str, Tensor], updates: int) -> None:
        """Go on from `moments` (names as in `moments()`), as after `updates` updates. Collective."""


class TorchEngine:
    """The plain torch engine: DistributedDataParallel if there are several ranks, and fused AdamW."""

    def __init__(self, towers: Trained, optimizer: OptimizerConfig, ranks: Ranks) -> None:
        self.towers, self.clip = towers, optimizer.grad_clip
        self.optimizer = adamw(towers, optimizer)
        device_ids = [ranks.device] if ranks.device.type == "cuda" else None
        self.module: nn.Module = towers
        if ranks.world > 1:
            # Gradients that are views of DDP's buckets save memory and a copy per step.
            self.module = DistributedDataParallel(towers, device_ids=device_ids, gradient_as_bucket_view=True, **_KEEP_BUFFERS)

    def embed(self, inputs: Tensors, seqhw: int, last: bool) -> Tensors:
        """Run the towers on one micro-batch. DDP decides in the forward pass whether the backward pass reduces gradients."""
        if isinstance(self.module, DistributedDataParallel):
            self.module.require_backward_grad_sync = last
        return self.module(*inputs, seqhw)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`."""
        loss.backward()

    def step(self, lr: float) -> float:
        """Clip, update, and clear the gradients. Returns the norm of the gradients before clipping."""
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
        """Yield every parameter of the towers with its name."""
        yield from ((name, p.detach()) for name, p in self.towers.named_parameters())

    def moments(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the optimizer's moments by name."""
        yield from moments_of(self.towers.trained_parameters(), self.optimizer)

    def load_moments(self, moments: dict[str, Tensor], updates: int) -> None:
        """Go on from these moments, as after `updates` updates."""
        load_moments_into(self.towers.trained_parameters(), self.optimizer, moments, updates)


def clip_gradients(optimizer: torch.optim.Optimizer, limit: float | None) -> float:
    """Scale the gradients of unsharded parameters down to the norm `limit`. Returns their norm before.

    With `limit` None the gradients stay as they are.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return float(nn.utils.clip_grad_norm_(parameters, float("inf") if limit is None else limit))


Named = Iterable[tuple[str, nn.Parameter]]
"""Unsharded parameters with their names in a checkpoint."""


def moments_of(named: Named, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Yield an optimizer's moments of parameters as ("MOMENT/NAME", tensor). They are zero before the first update."""
    parameters = list(named)
    for key in MOMENTS:
        for name, p in parameters:
            yield f"{key}/{name}", optimizer.state[p][key] if p in optimizer.state else torch.zeros_like(p)


def load_moments_into(named: Named, optimizer: torch.optim.Optimizer, moments: dict[str, Tensor], updates: int) -> None:
    """Restore an optimizer's moments of parameters, as after `updates` updates."""
    for name, p in named:
        steps = torch.tensor(float(updates), device=p.device if optimizer.defaults["fused"] else None)
        optimizer.state[p] = {"step": steps, **{key: moments[f"{key}/{name}"].to(p.device) for key in MOMENTS}}
