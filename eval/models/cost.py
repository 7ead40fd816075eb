"""Measures the GFLOPs per image of another library's model, by counting the matrix products while it runs once.

The counted products are those that flexiclip/models/flops.py counts for models of flexiclip.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def measured_gflops(encode: Callable[[Tensor], Tensor], image: Tensor) -> float | None:
    """Return the GFLOPs of `encode` on one image [1, 3, H, W], where a multiply-add counts 2; None if no product can be seen.

    torch counts what its dispatcher sees, and on a CPU it does not see inside a fused attention kernel. Attention is therefore
    computed with plain products meanwhile, and the fused inference path of nn.MultiheadAttention is switched off.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            encode(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops() / 1e9 or None
