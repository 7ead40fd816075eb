"""Compare attention in training on CPUs, which uses plain products in bfloat16, with torch's fused kernel: forward and backward.

    python -m scripts.bench.subjects.attention           batch 32, 3 heads of 64 as in ViT-Ti, at seven lengths (a minute)
    python -m scripts.bench.subjects.attention --quick   two lengths

`error` is the norm of the output's difference from float64, divided by the norm of the float64 output. In float32 both sides use
torch's kernel; the rows show what bfloat16 gains in total.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from flexiclip.models.attention import PLAIN_UP_TO, attend
from scripts.bench.measure import Work, ratio, take_turns
from scripts.bench.record import Record, options

BATCH, HEADS, HEAD = 32, 3, 64
LENGTHS = (26, 38, 77, 101, 226, 401, 901)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ABOUT = (
    "This subject times the forward and backward pass of self-attention in ViT-Ti's shape on the CPU. `attend` of "
    f"models/attention.py in training mode uses plain products in bfloat16 up to {PLAIN_UP_TO} tokens. It is compared with "
    "torch's scaled_dot_product_attention. The errors are those of the output, relative to float64."
)
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Call attention as a block in training mode does."""
    return attend(q, k, v, training=True)


def step(attention: Attention, qkv: list[Tensor]) -> Work:
    """Return a forward and backward pass."""
    leaves = [t.clone().requires_grad_() for t in qkv]

    def run() -> None:
        out = attention(*leaves)
        torch.autograd.grad(out, leaves, torch.ones_like(out))

    return run


def error(attention: Attention, qkv: list[Tensor]) -> float:
    """Return the relative error of the output, compared with float64."""
    q, k, v = (t.double() for t in qkv)
    expected = F.scaled_dot_product_attention(q, k, v)
    return float((attention(*qkv).double() - expected).norm() / expected.norm())


def main() -> None:
    """Measure every length in both precisions, write the record."""
    arguments = options(__doc__, rounds=7).parse_args()
    torch.set_num_threads(arguments.threads)
    lengths = LENGTHS[:2] if arguments.quick else LENGTHS
    record = Record("attention", ABOUT)
    table = record.table(
        f"forward and backward, batch {BATCH}, {HEADS} heads of {HEAD}, milliseconds",
        *("precision", "tokens", "ours", "torch's", "torch's / ours", "error", "torch's error"),
    )
    for precision, dtype in DTYPES.items():
        for length in lengths:
            torch.manual_seed(length)
            qkv = [torch.randn(BATCH, HEADS, length, HEAD).to(dtype) for _ in range(3)]
            sides: dict[str, Attention] = {"ours": ours, "torch's": F.scaled_dot_product_attention}
            times = take_turns({name: step(each, qkv) for name, each in sides.items()}, arguments.rounds)
            errors = [error(each, qkv) for each in sides.values()]
            assert max(errors) < 0.02, f"{precision}, {length} tokens: errors {errors}"
            medians = [1e3 * statistics.median(each) for each in times.values()]
            gain = ratio(times["torch's"], times["ours"])
            table.add(precision, length, *medians, f"{gain:.2f} x", *(f"{e:.1e}" for e in errors))
    record.finish(arguments)


if __name__ == "__main__":
    main()
