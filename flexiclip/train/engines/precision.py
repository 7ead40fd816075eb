"""Whether the towers run in bf16: what `train.precision` says, and for `auto` what the hardware of all ranks has."""

from __future__ import annotations

import torch

from flexiclip.train.processes.ranks import Ranks


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
