"""Compare PI-resize with timm's resampler at FlexiViT's ten patch sizes, and measure its share of a training step.

    python -m scripts.bench.subjects.pi_resize                     kernels of ViT-B and ViT-L (a quarter of an hour on two cores)
    python -m scripts.bench.subjects.pi_resize --seqhw 5,8,15,30   the share of a training step at other lengths too
    python -m scripts.bench.subjects.pi_resize --quick             ViT-Ti, three small sizes (half a minute)

Both resize the same 32x32 kernel as big_vision does (bilinear, no antialias), and agree to the accuracy of float32. `matrices` is
the time to build the matrices of a size with empty caches: timm computes the pseudo-inverse of the whole resize, 1,024 x size^2,
where one small pseudo-inverse per axis is enough. `first` is the first call at a size, including the matrices. `warm` is a later
call that finds them in the cache, as a training step does.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence

import torch
from timm.layers.patch_embed import PatchEmbedResamplerFixedOrigSize
from torch import Tensor

from flexiclip.config import ImageTowerConfig
from flexiclip.models import pi_resize as resize
from flexiclip.models.flexivit import FlexiViT
from flexiclip.models.pi_resize import pi_resize
from flexiclip.train.blocks import keep_freed_memory
from scripts.bench.measure import Work, ratio, take_turns
from scripts.bench.record import Record, options

IMAGE, KERNEL = 240, 32  # pixels
LENGTHS = (5, 6, 8, 10, 12, 15, 16, 20, 24, 30)
WIDTHS = {"Ti": 192, "B": 768, "L": 1024}
HELD_AT = (30, 48)
WANTED = {"matrices": 1000, "warm": 10}
"""The goals for timm's time divided by ours, at the sizes HELD_AT."""
SHARE = 0.005
Resize = Callable[[Tensor, int], Tensor]

REPEATED = 50  # our matrices are built this often in a turn, because a tenth of a millisecond is too short to measure

BOUND = (
    "What limits `warm`: for a size s, timm needs 1,024 s^2 multiplications per channel, and the products over two axes "
    "need 1,024 s + 32 s^2. At equal speed the ratio would be s / (1 + s / 32), which is 6 at 8, 15 at 30 and 19 at 48. "
    "But products whose inner side is 32 run at about half the speed of timm's large product. Neither matters in a "
    "training step: see the share."
)
ABOUT = (
    "This subject compares PI-resize of a 32x32 patch embedding kernel with timm's PatchEmbedResamplerFixedOrigSize. Both "
    "use the same image resize (bilinear, no antialias) and give the same result. `matrices` is the time to build the "
    "matrices of a size, `first` is the first call at a size, and `warm` is a later call."
)


def cold(kernel: Tensor, size: int, times: int = 1) -> None:
    """Call PI-resize `times` times, with emptied caches each time."""
    for _ in range(times):
        resize.pi_matrix.cache_clear()
        resize._interpolation.cache_clear()
        pi_resize(kernel, size)


def timm_resampler() -> Resize:
    """Return timm's resampler, which caches the matrices of each size."""
    module = PatchEmbedResamplerFixedOrigSize((KERNEL, KERNEL), interpolation="bilinear", antialias=False)

    def resample(kernel: Tensor, size: int) -> Tensor:
        resized: Tensor = module(kernel, [size, size])
        return resized

    return resample


def works_of(kernel: Tensor, size: int, warm: Resize) -> dict[str, dict[str, Work]]:
    """Return both sides of each column. `matrices` resizes a single channel, so that nearly all time goes to the matrices.

    warm: a resampler of timm that has the matrices of the size already.
    """
    one = kernel[:1, :1]
    return {
        "matrices": {"ours": lambda: cold(one, size, REPEATED), "timm": lambda: timm_resampler()(one, size)},
        "first": {"ours": lambda: cold(kernel, size), "timm": lambda: timm_resampler()(kernel, size)},
        "warm": {"ours": lambda: pi_resize(kernel, size), "timm": lambda: warm(kernel, size)},
    }


def compare(variant: str, sizes: Sequence[int], rounds: int, record: Record) -> None:
    """Add the table of one kernel to the record, with its goals."""
    torch.manual_seed(0)
    kernel = torch.randn(WIDTHS[variant], 3, KERNEL, KERNEL)
    table = record.table(
        f"ViT-{variant}'s kernel, {WIDTHS[variant]} x 3 x {KERNEL} x {KERNEL}, milliseconds",
        *("size", "matrices", "timm", "ratio", "first", "timm", "ratio", "warm", "timm", "ratio", "difference"),
    )
    for size in sizes:
        theirs = timm_resampler()
        difference = float((pi_resize(kernel, size) - theirs(kernel, size)).abs().max())
        assert difference <= 1e-3 * float(kernel.abs().max()), f"{size}: the two resizes differ by {difference:.0e}"
        cells: list[object] = []
        for what, works in works_of(kernel, size, theirs).items():
            times = take_turns(works, rounds if what == "warm" else min(3, rounds))
            if what == "matrices":
                times["ours"] = [each / REPEATED for each in times["ours"]]
            gain = ratio(times["timm"], times["ours"])
            cells += [*(1e3 * statistics.median(each) for each in times.values()), f"{gain:,.1f} x"]
            if size in HELD_AT and what in WANTED:
                record.goal(f"ViT-{variant}, {size}: timm / ours, {what}", gain, at_least=WANTED[what])
        table.add(size, *cells, f"{difference:.0e}")


def training_step(tower: FlexiViT, images: Tensor, seqhw: int) -> Work:
    """Return a training step at one length: forward, backward and AdamW."""
    optimizer = torch.optim.AdamW(tower.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        tower(images, seqhw=seqhw).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def resize_step(kernel: Tensor, size: int) -> None:
    """Run PI-resize, forward and backward."""
    resized = pi_resize(kernel, size)
    resized.backward(torch.ones_like(resized))


def share_of_a_step(variant: str, batch: int, lengths: Sequence[int], rounds: int, record: Record) -> None:
    """Measure the resize of the tower's kernel, forward and backward, in turn with a whole training step."""
    torch.manual_seed(0)
    tower = FlexiViT(ImageTowerConfig(variant=variant, image_size=IMAGE, base_patch_size=KERNEL))
    images = torch.randn(batch, 3, IMAGE, IMAGE)
    kernel = tower.kernel.detach().clone().requires_grad_()
    table = record.table(
        f"ViT-{variant}, batch {batch}, {IMAGE} px: the resize, forward and backward, in a training step",
        *("seqhw", "patch", "resize ms", "step ms", "share"),
    )
    for seqhw in lengths:
        size = IMAGE // seqhw
        step = training_step(tower, images, seqhw)
        times = take_turns({"resize": lambda: resize_step(kernel, size), "step": step}, rounds)  # noqa: B023
        share = ratio(times["resize"], times["step"])
        table.add(seqhw, size, *(1e3 * statistics.median(each) for each in times.values()), f"{share:.3%}")
        record.goal(f"ViT-{variant}, seqhw {seqhw}: share of a step", share, at_most=SHARE)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = options(__doc__, rounds=9)
    parser.add_argument("--variants", default="B,L", help=f"kernels: {', '.join(WIDTHS)}, with commas between them")
    parser.add_argument("--batch", type=int, default=32, help="pairs in the training step, whose tower is the first variant")
    parser.add_argument("--seqhw", default="8,15", help="lengths at which a training step is measured, with commas between them")
    arguments = parser.parse_args()
    arguments.sizes = sorted(IMAGE // seqhw for seqhw in LENGTHS)
    arguments.step_rounds = 3
    if arguments.quick:
        arguments.variants, arguments.batch, arguments.seqhw, arguments.sizes = "Ti", 2, "8", [8, 10, 16]
        arguments.rounds = arguments.step_rounds = 1
    return arguments


def main() -> None:
    """Print the tables."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as in training, for both sides, so that neither maps the pages of its result again in every call
    record = Record("pi_resize", ABOUT)
    variants = arguments.variants.split(",")
    for variant in variants:
        compare(variant, arguments.sizes, arguments.rounds, record)
    lengths = [int(part) for part in arguments.seqhw.split(",")]
    share_of_a_step(variants[0], arguments.batch, lengths, arguments.step_rounds, record)
    record.notes.append(BOUND)
    record.finish(arguments)


if __name__ == "__main__":
    main()
