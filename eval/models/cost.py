"""What an image costs a model of another library: matrix products counted while it runs once, as models/flops.py has them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def measured_gflops(encode: Callable[[Tensor], Tensor], image: Tensor) -> float | None:
    """GFLOPs of `encode` on one image [1, 3, H, W], a multiply-add counting 2; None where no product can be seen.

    torch counts what its dispatcher sees: attention fused into one kernel it does not know on a CPU, so the plain products are
    asked for, and the fused encoder layer of nn.MultiheadAttention's inference is switched off meanwhile.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            encode(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops() / 1e9 or None
