"""AdamW with decay on matrices only, and the tiny optimiser of logit_scale and logit_bias."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flexiclip.config import OptimizerConfig

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
