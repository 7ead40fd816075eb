"""Compare the tiled losses with open_clip's ClipLoss and SigLipLoss: time and memory of forward and backward, by batch size.

    python -m scripts.bench.subjects.losses                             1,024 to 16,384 x 512, then 65,536 without open_clip
                                                                        (half an hour on two cores)
    python -m scripts.bench.subjects.losses --batches 4096 --alone ""   one batch (a minute)
    python -m scripts.bench.subjects.losses --quick                     512 (some seconds)

Times are measured in turn in one process, after both sides have given the same loss and gradients. Memory is measured in a
separate process for each loss and batch. `added` is what forward and backward add to a process that already holds the embeddings
(VmHWM, reset after a small warm-up, minus VmRSS before), so it counts gradients, logits and every temporary, but not torch
itself. `process` is the peak of the whole process. open_clip's softmax at 32,768 does not fit into 24 GB. Linux only (/proc).
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from scripts.bench.measure import forget_peak, measure_apart, memory, ratio, seconds, take_turns
from scripts.bench.record import Record, options

if TYPE_CHECKING:
    from torch import Tensor

SCALE, BIAS = 14.3, -10.0
"""The initial exp(logit_scale) of CLIP, 1 / 0.07, and the initial logit_bias of SigLIP."""

WARM_UP = 256
"""Rows of a first pass that loads kernels and starts threads, and is not counted."""

FASTER_FROM = 2048
"""The goal is that ours is faster from this batch size on."""

LARGEST, TIME, MEMORY = 16_384, 0.75, 0.05
"""The goals at batch LARGEST: ours takes at most these shares of the time and of the memory of open_clip."""

ABOUT = (
    "This subject measures the forward and backward pass of the contrastive losses in float32. flexiclip's tiled losses "
    "are compared with open_clip's ClipLoss (softmax) and SigLipLoss (sigmoid). `added MB` is the memory that a pass adds "
    "to a process that already holds the embeddings, including the gradients."
)


class Found(NamedTuple):
    """The measurements of one loss at one batch: seconds of each round, bytes added, and bytes of the process."""

    seconds: list[float]
    added: int
    process: int


def loss_function(side: str, kind: str) -> Callable[..., Tensor]:
    """Return a function (zimg, ztxt, logit_scale[, logit_bias]) -> loss. logit_scale is a log."""
    if side == "flexiclip":
        from flexiclip.losses import LOSSES

        return LOSSES[kind]
    from open_clip.loss import ClipLoss, SigLipLoss

    loss = ClipLoss() if kind == "softmax" else SigLipLoss()
    return lambda zimg, ztxt, logit_scale, *bias: loss(zimg, ztxt, logit_scale.exp(), *bias)


def inputs(kind: str, batch: int, dim: int) -> list[Tensor]:
    """Return zimg and ztxt [batch, dim] with rows of length 1, and the scalars of the loss; all require gradients."""
    import torch
    import torch.nn.functional as F

    torch.manual_seed(0)
    rows = [F.normalize(torch.randn(batch, dim), dim=1) for _ in range(2)]
    scalars = [torch.tensor(SCALE).log(), *([torch.tensor(BIAS)] if kind == "sigmoid" else [])]
    return [x.requires_grad_() for x in (*rows, *scalars)]


def passes(loss: Callable[..., Tensor], given: list[Tensor]) -> Callable[[], Tensor]:
    """Return a forward and backward pass, which leaves its gradients in `given`."""

    def work() -> Tensor:
        for x in given:
            x.grad = None
        value = loss(*given)
        value.backward()
        return value.detach()

    return work


def measure_memory(side: str, kind: str, batch: int, dim: int, threads: int) -> dict[str, Any]:
    """Run one pass in this process. Returns its seconds, the bytes that it adds, and the bytes of the whole process."""
    import torch

    torch.set_num_threads(threads)
    loss, given = loss_function(side, kind), inputs(kind, batch, dim)
    passes(loss, inputs(kind, WARM_UP, dim))()
    before = forget_peak()
    spent = seconds(passes(loss, given))
    peak = memory("VmHWM")
    return {"seconds": spent, "added": peak - before, "process": peak}


def apart(side: str, kind: str, batch: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Call measure_memory in a process of its own."""
    shape = {"side": side, "kind": kind, "batch": batch, "dim": arguments.dim, "threads": arguments.threads}
    return measure_apart("scripts.bench.subjects.losses", shape, flags=("--measure",))


def assert_same(kind: str, batch: int, dim: int) -> None:
    """Check that the losses and all gradients agree, to the accuracy of such sums in float32."""
    given = inputs(kind, batch, dim)
    found = []
    for side in ("flexiclip", "open_clip"):
        value = passes(loss_function(side, kind), given)()
        found.append([value, *(x.grad for x in given if x.grad is not None)])
    for ours, theirs in zip(*found, strict=True):
        apart_by, size = float((ours - theirs).norm()), float(theirs.norm())
        assert apart_by <= 1e-4 * size, f"{kind}, batch {batch}: the two losses differ by {apart_by / size:.0e}"


def compare(kind: str, batch: int, arguments: argparse.Namespace) -> dict[str, Found]:
    """Measure both losses at one batch. Small batches have more rounds, because they are cheap."""
    assert_same(kind, batch, arguments.dim)
    sides = ("flexiclip", "open_clip")
    works = {side: passes(loss_function(side, kind), inputs(kind, batch, arguments.dim)) for side in sides}
    times = take_turns(works, min(20, max(arguments.rounds, LARGEST // batch)))
    held = {side: apart(side, kind, batch, arguments) for side in sides}
    return {side: Found(times[side], held[side]["added"], held[side]["process"]) for side in sides}


def cells(found: Found, peer: Found | None) -> list[str]:
    """Return the cells for seconds, MB added, MB of the process, and the shares of the peer's time and memory."""
    shares = ["-", "-"] if peer is None else [f"{ratio(found.seconds, peer.seconds):.2f}", f"{found.added / peer.added:.3f}"]
    sizes = [f"{size / 2**20:,.0f}" for size in (found.added, found.process)]
    return [f"{statistics.median(found.seconds):.3g}", *sizes, *shares]


def hold(record: Record, kind: str, batch: int, found: dict[str, Found]) -> None:
    """Add the goals of one batch to the record."""
    ours, theirs = found.values()
    if batch >= FASTER_FROM:
        wanted = TIME if batch >= LARGEST else 1.0
        record.goal(f"{kind}, {batch:,}: time / open_clip's", ratio(ours.seconds, theirs.seconds), at_most=wanted)
    if batch >= LARGEST:
        record.goal(f"{kind}, {batch:,}: memory / open_clip's", ours.added / theirs.added, at_most=MEMORY)


def draw(record: Record, everything: dict[tuple[str, int], dict[str, Found]]) -> None:
    """Add plots of time and memory against the batch size."""
    names = {(kind, side): f"{side}, {kind}" for kind, _ in everything for side in ("flexiclip", "open_clip")}
    for title, y in (("Memory that a pass adds", "MB"), ("Time of a pass", "seconds")):
        series: dict[str, list[tuple[float, float]]] = {name: [] for name in names.values()}
        for (kind, batch), found in everything.items():
            for side, each in found.items():
                value = each.added / 2**20 if y == "MB" else statistics.median(each.seconds)
                series[names[kind, side]].append((batch, value))
        record.curve(title, "batch", y, series)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = options(__doc__, rounds=3)
    parser.add_argument("--batches", default="1024,2048,4096,8192,16384", help="pairs, with commas between them")
    parser.add_argument("--alone", default="65536", help="pairs of flexiclip's runs without the peer, with commas between them")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Print the table."""
    arguments = parse()
    if arguments.measure:
        shape = {name: getattr(arguments, name) for name in ("side", "kind", "batch", "dim", "threads")}
        print(json.dumps(measure_memory(**shape)))
        return
    if arguments.quick:
        arguments.batches, arguments.alone, arguments.rounds = "512", "", 1
    import torch

    torch.set_num_threads(arguments.threads)
    record = Record("losses", ABOUT)
    table = record.table(
        f"{arguments.dim} wide, float32, {arguments.threads} threads",
        *("loss", "batch", "library", "seconds", "added MB", "process MB", "time / peer", "memory / peer"),
    )
    everything = {}
    for kind in ("softmax", "sigmoid"):
        for batch in map(int, arguments.batches.split(",")):
            found = everything[kind, batch] = compare(kind, batch, arguments)
            for side, each in found.items():
                table.add(kind, f"{batch:,}", side, *cells(each, found["open_clip"] if side == "flexiclip" else None))
            hold(record, kind, batch, found)
        for batch in (int(part) for part in arguments.alone.split(",") if part):
            held = apart("flexiclip", kind, batch, arguments)
            table.add(kind, f"{batch:,}", "flexiclip", *cells(Found([held["seconds"]], held["added"], held["process"]), None))
    draw(record, everything)
    record.finish(arguments)


if __name__ == "__main__":
    main()
