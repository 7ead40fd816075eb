"""What PI-resize costs: building its matrices, and applying it in a training step.

    python scripts/bench/pi_resize.py                       ViT-B, batch 32, 240 px, seqhw 8 (some minutes on 2 CPU cores)
    python scripts/bench/pi_resize.py --seqhw 5,8,15,30     the training step at other lengths too
    python scripts/bench/pi_resize.py --quick               ViT-S, batch 8, small pseudo-inverses only (seconds)

Two tables. The first builds the matrices that resize a 32x32 kernel to FlexiViT's ten patch sizes (arXiv 2212.08013, 240 px):
one small pseudo-inverse an axis, as flexiclip does it, against the pseudo-inverse of the whole resize, as the paper writes it,
both in float64. The second applies the resize, forward and backward, and divides by a training step (forward, backward, AdamW)
measured in the same run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from rich.console import Console
from rich.table import Table

from flexiclip.config import ImageTowerConfig
from flexiclip.models import pi_resize as resize
from flexiclip.models.flexivit import FlexiViT

IMAGE, KERNEL = 240, 32  # pixels
LENGTHS = (5, 6, 8, 10, 12, 15, 16, 20, 24, 30)


def seconds(work: Callable[[], object], repeats: int, device: str) -> float:
    """The shortest wall-clock time of a call, after one that is not counted: other processes can only add to it."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def build_axis(sizes: Sequence[int]) -> list[torch.Tensor]:
    """The per-axis matrices, from nothing: the caches are emptied first."""
    resize.pi_matrix.cache_clear()
    resize._interpolation.cache_clear()
    return [resize.pi_matrix(KERNEL, size) for size in sizes]


def build_full(size: int) -> torch.Tensor:
    """pinv(B^T) of the whole resize, [size^2, KERNEL^2] float64, from the basis images as big_vision builds it."""
    basis = torch.eye(KERNEL**2).reshape(KERNEL**2, 1, KERNEL, KERNEL)
    resized = torch.nn.functional.interpolate(basis, size=(size, size), mode="bilinear", align_corners=False)
    return torch.linalg.pinv(resized.reshape(KERNEL**2, size**2).double())  # resized is B^T


def building(sizes: Sequence[int], full_sizes: Sequence[int]) -> Table:
    """Time and memory of the matrices, and how far the two ways differ."""
    table = Table(
        "patch",
        "per axis [ms]",
        "full [ms]",
        "ratio",
        "largest difference",
        title=f"building the matrices, from {KERNEL}x{KERNEL}",
    )
    total = seconds(partial(build_axis, sizes), 20, "cpu")
    for size in sizes:
        axis = seconds(partial(build_axis, [size]), 20, "cpu")
        row = [str(size), f"{axis * 1e3:.2f}", "", "", ""]
        if size in full_sizes:
            start = time.perf_counter()
            full = build_full(size)
            took = time.perf_counter() - start
            (matrix,) = build_axis([size])
            row[2:] = [f"{took * 1e3:.0f}", f"{took / axis:.0f}", f"{(torch.kron(matrix, matrix) - full).abs().max():.1e}"]
        table.add_row(*row)
    table.add_section()
    table.add_row(f"all {len(sizes)}", f"{total * 1e3:.2f}")
    return table


def training_step(tower: FlexiViT, images: torch.Tensor, seqhw: int) -> Callable[[], None]:
    """Forward, backward and AdamW at one length."""
    optimizer = torch.optim.AdamW(tower.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        tower(images, seqhw=seqhw).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def resize_step(kernel: torch.Tensor, size: int) -> None:
    """PI-resize, forward and backward."""
    resized = resize.pi_resize(kernel, size)
    resized.backward(torch.ones_like(resized))


def applying(variant: str, batch: int, lengths: Sequence[int], device: str) -> Table:
    """The resize of the tower's kernel, forward and backward, next to a whole training step."""
    torch.manual_seed(0)
    config = ImageTowerConfig(variant=variant, image_size=IMAGE, base_patch_size=KERNEL)
    tower = FlexiViT(config).to(device)
    images = torch.randn(batch, 3, IMAGE, IMAGE, device=device)
    kernel = tower.kernel.detach().clone().requires_grad_()
    table = Table(
        "seqhw", "patch", "resize [ms]", "step [ms]", "resize / step", title=f"ViT-{variant}, batch {batch}, {IMAGE} px, {device}"
    )
    for seqhw in LENGTHS:
        size = IMAGE // seqhw
        spent = seconds(partial(resize_step, kernel, size), 10, device)
        row = [str(seqhw), str(size), f"{spent * 1e3:.2f}", "", ""]
        if seqhw in lengths:
            step = seconds(training_step(tower, images, seqhw), 2, device)
            row[3:] = [f"{step * 1e3:.0f}", f"{spent / step:.3%}"]
        table.add_row(*row)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="B", help="Ti, S, B, L or So400m")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seqhw", default="8", help="lengths at which a training step is measured, with commas between them")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--quick", action="store_true", help="ViT-S, batch 8, full pseudo-inverses up to 16 only")
    args = parser.parse_args()
    variant, batch = ("S", 8) if args.quick else (args.variant, args.batch)
    sizes = [IMAGE // seqhw for seqhw in LENGTHS]
    console = Console()
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    console.print(building(sizes, [size for size in sizes if size <= 16 or not args.quick]))
    console.print(applying(variant, batch, [int(s) for s in args.seqhw.split(",")], args.device))


if __name__ == "__main__":
    main()
