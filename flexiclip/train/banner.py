"""The lines at the start of a run: what is trained, on what and for how long, and what in the recipe is probably a mistake.

    model    43.1 M parameters, 22.4 M of them train
    data     3,319 samples, 48 epochs
    run      768 steps of 256 samples, on 2 ranks of 128
    device   cpu, fp32
    memory   1.2 GB estimated for each rank, of 15.7 GB
    folder   runs/openmoji_flexilit
    curves   tensorboard --logdir runs/openmoji_flexilit

The estimate of the memory is that of `flexiclip plan`. Whoever starts the run passes it in, because plan/ is on the same floor.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from flexiclip.config import Config
from flexiclip.errors import UserError
from flexiclip.files import size_text
from flexiclip.train.ranks import Ranks
from flexiclip.train.setup import Run


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory that a rank is expected to need at most, and what there is for it, in bytes."""

    needed: float
    available: float


EstimateMemory = Callable[[Config, Ranks, int | None], MemoryEstimate]
"""A function (recipe with its precision, ranks, samples per epoch) -> the estimate. Raises UserError if there is none."""


def banner(run: Run, estimate: EstimateMemory | None) -> list[str]:
    """Return the lines to print before the first step. Only the main rank calls this."""
    memory = _estimated(run, estimate)
    rows = {
        "model": _model(run),
        "data": _data(run),
        "run": _steps(run),
        "device": _device(run),
        "memory": None if memory is None else _memory(memory),
        "folder": str(run.context.folder),
        "curves": f"tensorboard --logdir {shlex.quote(str(run.context.folder))}",
    }
    return [*(f"{name:<8} {text}" for name, text in rows.items() if text is not None), *_warnings(run, memory)]


def _model(run: Run) -> str:
    parameters = list(run.loaded.model.parameters())
    trained, every = (sum(map(_size, some)) for some in ([p for p in parameters if p.requires_grad], parameters))
    return f"{every / 1e6:,.1f} M parameters, {trained / 1e6:,.1f} M of them train"


def _size(parameter: torch.nn.Parameter) -> int:
    """Return the number of elements, also of a parameter that ZeRO-3 has divided among the ranks."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _data(run: Run) -> str | None:
    horizon = run.schedule.horizon
    if horizon.samples is None:
        return None
    return f"{horizon.samples:,} samples, {horizon.steps * horizon.batch / horizon.samples:.3g} epochs"


def _steps(run: Run) -> str:
    horizon, world = run.schedule.horizon, run.context.ranks.world
    shared = f", on {world} ranks of {horizon.batch // world:,}" if world > 1 else ""
    begun = f", going on from step {run.step:,}" if run.step else ""
    return f"{horizon.steps:,} steps of {horizon.batch:,} samples{shared}{begun}"


def _device(run: Run) -> str:
    device = run.context.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name}, {'bf16' if run.context.bf16 else 'fp32'}"


def _memory(memory: MemoryEstimate) -> str:
    return f"{size_text(memory.needed)} estimated for each rank, of {size_text(memory.available)}"


def _estimated(run: Run, estimate: EstimateMemory | None) -> MemoryEstimate | None:
    """Return the estimate, or None if there is none for this recipe."""
    if estimate is None:
        return None
    config = run.loaded.config
    train = replace(config.train, precision="bf16" if run.context.bf16 else "fp32")
    try:
        with torch.random.fork_rng(devices=[]):  # the estimate builds the model once more, and the run must not notice
            return estimate(replace(config, train=train), run.context.ranks, run.schedule.horizon.samples)
    except UserError:
        return None


def _warnings(run: Run, memory: MemoryEstimate | None) -> Iterator[str]:
    """Yield a line for each setting that is allowed and probably a mistake."""
    section, horizon = run.config.optimizer, run.schedule.horizon
    warmup = horizon.steps_of(section.warmup)
    if warmup >= horizon.steps:
        highest = max(run.schedule.lr(step) for step in range(horizon.steps))
        yield (
            f"optimizer.warmup={section.warmup} is not shorter than the run of {horizon.steps} steps: the learning rate reaches "
            f"{highest:.1e} of optimizer.lr={section.lr:.1e}; set optimizer.warmup=5%"
        )
    if memory is not None and memory.needed > memory.available:
        yield (
            "the estimated memory is more than there is: the run may be killed; `flexiclip plan` names a "
            "train.micro_batch_size that fits"
        )
