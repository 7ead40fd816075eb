"""The DeepSpeed engine: ZeRO 0-3, on GPUs or on CPUs over gloo.

Parameters remain float32 and bf16 is an autocast inside Towers, so that every stage trains like plain torch. With `bf16.enabled`
DeepSpeed would round the weights to bf16. State is read and written unsharded and by parameter name, because DeepSpeed's own
checkpoints cannot be resumed with another number of ranks or another stage.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from types import ModuleType

import torch
from torch import Tensor

from flexiclip.config import EngineConfig, OptimizerConfig, TrainConfig
from flexiclip.train.engine import MOMENTS, adamw, clip_gradients, load_moments_into, moments_of
from flexiclip.train.ranks import Ranks
from flexiclip.train.towers import Tensors, Trained

_CPU = {"device": "cpu"}
OFFLOADED: dict[str, dict[str, dict[str, str]]] = {
    "none": {},
    "optimizer": {"offload_optimizer": _CPU},
    "parameters": {"offload_optimizer": _CPU, "offload_param": _CPU},
}
"""engine.offload -> its entries in DeepSpeed's zero_optimization section."""


class DeepSpeedEngine:
    """The Engine (engine.py) that runs DeepSpeed. `towers` must have their weights before the engine is made."""

    def __init__(
        self,
        towers: Trained,
        engine: EngineConfig,
        train: TrainConfig,
        optimizer: OptimizerConfig,
        shortest: int,
        ranks: Ranks,
    ) -> None:
        """shortest: the smallest seqhw of the run, for passes whose result does not matter."""
        self.towers, self.ranks, self.shortest = towers, ranks, shortest
        self.stage, self.clip = engine.zero_stage, optimizer.grad_clip
        self.engine, self.optimizer, _, _ = _import_deepspeed().initialize(
            model=towers,
            optimizer=adamw(towers, optimizer),
            config=deepspeed_config(engine, train, optimizer, ranks.world),
            dist_init_required=False,
        )

    def embed(self, inputs: Tensors, seqhw: int, last: bool) -> Tensors:
        """Run the towers on one micro-batch. DeepSpeed reduces gradients after the step's last one."""
        self.engine.set_gradient_accumulation_boundary(last)
        return self.engine(*inputs, seqhw)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`."""
        self.engine.backward(loss)

    def step(self, lr: float) -> float:
        """Clip, update and clear the gradients. Returns the norm of the gradients before clipping, or inf.

        At stages 1-3 only DeepSpeed's own step knows the norm, and it refuses one that is not finite by itself.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.stage == 0:
            norm = clip_gradients(self._inner(), self.clip)
            if not math.isfinite(norm):
                self._inner().zero_grad(set_to_none=True)  # AdamW leaves a parameter without a gradient as it is
            self.engine.step()
            return norm
        self.engine.step()
        return float(self.engine.get_global_grad_norm()) if self.engine.was_step_applied() else math.inf

    def discard_gradients(self) -> None:
        """See Engine. DeepSpeed clears what its hooks have added up in a step only, so it gets one that it must refuse."""
        self._dummy_backward(math.nan)
        self.step(lr=0.0)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every parameter unsharded, float32, with its name."""
        whole = _gathered if self.stage == 3 else torch.Tensor.detach
        yield from ((name, whole(p)) for name, p in self.towers.named_parameters())

    def moments(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the optimizer's moments, unsharded, by name. Before the first step they are made, as zeros."""
        if self.stage == 0:
            yield from moments_of(self.towers.trained_parameters(), self._inner())
            return
        from deepspeed.utils import safe_get_full_optimizer_state

        if not self._inner().state:
            self._prime(updates=0)
        self._link_moments()
        for key in MOMENTS:
            for name, p in self.towers.trained_parameters():
                yield f"{key}/{name}", _to_cpu(safe_get_full_optimizer_state(p, key))

    def load_moments(self, moments: dict[str, Tensor], updates: int) -> None:
        """Go on from these moments, as after `updates` updates."""
        if self.stage == 0:
            load_moments_into(self.towers.trained_parameters(), self._inner(), moments, updates)
            return
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        self._prime(updates)
        self._link_moments()
        for key in MOMENTS:
            for name, p in self.towers.trained_parameters():
                moment = moments[f"{key}/{name}"].to(self.ranks.device)
                if self.stage == 3:
                    safe_set_local_optimizer_state(p, shard(moment, self.ranks.rank, self.ranks.world), key)
                else:
                    safe_set_full_optimizer_state(p, moment, key)

    def _prime(self, updates: int) -> None:
        """Make the moments exist, as after `updates` updates.

        Stages 1-3 create the moments in the first step, so this takes one step with learning rate 0 on gradients of zero.
        """
        hooks = [p.register_hook(torch.zeros_like) for _, p in self.towers.trained_parameters()]  # zeros even if a weight is NaN
        self._dummy_backward(1.0)
        for hook in hooks:
            hook.remove()
        self.step(lr=0.0)
        for state in self._inner().state.values():
            state["step"] = torch.full_like(torch.as_tensor(state["step"]), float(updates))

    def _dummy_backward(self, factor: float) -> None:
        """Go forward and backward on dummy inputs, whose loss is the sum of the outputs times `factor`."""
        outputs = self.embed(self.towers.dummy_inputs(self.ranks.device), self.shortest, last=True)
        self.backward(factor * torch.stack([output.sum() for output in outputs]).sum())

    def _link_moments(self) -> None:
        """Link all moments to their parameters.

        DeepSpeed 0.19 does this after the first step of the first parameter group, when the second group has no moments yet.
        """
        if self.stage in (1, 2):
            self.optimizer._hp_optimizer_states_linked = False
            self.optimizer._lazy_init_hp_params_optimizer_state()

    def _inner(self) -> torch.optim.Optimizer:
        """The AdamW that DeepSpeed wraps at stages 1-3 and uses directly at stage 0."""
        return getattr(self.optimizer, "optimizer", self.optimizer)


def shard(tensor: Tensor, rank: int, world: int) -> Tensor:
    """Return a rank's part of a tensor under ZeRO-3, [ceil(numel / world)]. The part of the last rank is padded with zeros.

    DeepSpeed 0.19's safe_set_full_optimizer_state splits the tensor without padding, and raises if it does not divide evenly.
    """
    padding = -tensor.numel() % world
    return torch.nn.functional.pad(tensor.flatten(), (0, padding)).chunk(world)[rank]


def deepspeed_config(engine: EngineConfig, train: TrainConfig, optimizer: OptimizerConfig, world: int) -> dict[str, object]:
    """Return the DeepSpeed config of a recipe, with `engine.deepspeed` merged over it.

    step.py accumulates gradients itself and sets the boundary, so the config names one micro-batch per step.
    """
    clip = optimizer.grad_clip if engine.zero_stage else None  # stage 0 would clip without reporting the norm
    generated: dict[str, object] = {
        "train_micro_batch_size_per_gpu": train.global_batch_size // world,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip or 0.0,
        "zero_optimization": {"stage": engine.zero_stage, **OFFLOADED[engine.offload]},
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW is vectorized on CPUs too, and needs no compiler
        "steps_per_print": 10**12,
        "wall_clock_breakdown": False,
    }
    for key, value in engine.deepspeed.items():
        own = generated.get(key)
        generated[key] = {**own, **value} if isinstance(own, Mapping) and isinstance(value, Mapping) else value
    return generated


def _gathered(parameter: torch.nn.Parameter) -> Tensor:
    """Return a parameter of ZeRO-3 unsharded, on the CPU.

    A trained parameter comes from the optimizer's float32 copy, a frozen one is gathered from the module.
    """
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    if parameter.requires_grad:
        return _to_cpu(safe_get_full_fp32_param(parameter))
    with GatheredParameters([parameter]):
        return parameter.detach().cpu().clone()


def _to_cpu(tensor: Tensor | None) -> Tensor:
    assert tensor is not None, "DeepSpeed holds no state for a trained parameter"
    return tensor.detach().cpu()


def _import_deepspeed() -> ModuleType:
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed calls torch by older names
    # At start on CPUs, DeepSpeed would compile a shared-memory all-reduce, which takes a minute and which only inference uses.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
