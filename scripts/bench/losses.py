"""What the tiled softmax loss saves: flexiclip's against open_clip's ClipLoss, forward and backward, side by side.

    python scripts/bench/losses.py                           batch 16,384 x 512 against the peer, then 65,536 alone (some minutes)
    python scripts/bench/losses.py --batch 4096 --alone ""   a smaller batch (under a minute)

Each measurement is a process of its own, so that no allocator remembers another's peak; the two losses take turns. Peak memory is
what forward and backward add to the process that holds the embeddings already (VmHWM, reset after a small warm-up, less VmRSS
before), so it counts gradients, logits and every temporary, and not torch itself. `process` is all of it. The loss and
its gradients are compared too: a fast wrong answer is none. open_clip's 32,768 does not fit into 24 GB. Linux only (/proc).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SCALE = 14.3
"""exp(logit_scale): CLIP's at the start of training, 1 / 0.07."""

WARM_UP = 256
"""Rows of a first pass that is not counted: it loads kernels and starts threads."""


def loss_function(name: str) -> Callable[..., Any]:
    """(zimg, ztxt, logit_scale) -> loss; logit_scale is a log."""
    if name == "flexiclip":
        from flexiclip import softmax_loss

        return softmax_loss
    from open_clip.loss import ClipLoss

    loss = ClipLoss()
    return lambda zimg, ztxt, logit_scale: loss(zimg, ztxt, logit_scale.exp())


def memory(field: str) -> int:
    """A field of /proc/self/status, such as VmHWM (the peak) or VmRSS (now), in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def measure(name: str, batch: int, dim: int, threads: int) -> dict[str, Any]:
    """One forward and backward pass in this process."""
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    zimg, ztxt = (F.normalize(torch.randn(batch, dim), dim=1).requires_grad_() for _ in range(2))
    scale = torch.tensor(SCALE).log().requires_grad_()
    loss = loss_function(name)
    loss(zimg[:WARM_UP].detach().requires_grad_(), ztxt[:WARM_UP].detach(), scale.detach()).backward()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from VmRSS
    before, start = memory("VmRSS"), time.perf_counter()
    value = loss(zimg, ztxt, scale)
    value.backward()
    seconds = time.perf_counter() - start
    peak = memory("VmHWM")
    assert zimg.grad is not None
    assert ztxt.grad is not None
    assert scale.grad is not None
    checks = [float(value.detach()), float(zimg.grad.norm()), float(ztxt.grad.norm()), float(scale.grad)]
    return {"seconds": seconds, "added": peak - before, "process": peak, "checks": checks}


def in_a_process(name: str, arguments: argparse.Namespace, batch: int) -> dict[str, Any]:
    """measure() in a fresh process."""
    options = ["--measure", name, "--batch", str(batch), "--dim", str(arguments.dim), "--threads", str(arguments.threads)]
    done = subprocess.run([sys.executable, __file__, *options], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(arguments: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Rounds of both losses, each in its turn, at one batch."""
    found: dict[str, list[dict[str, Any]]] = {"flexiclip": [], "open_clip": []}
    for number in range(arguments.rounds):
        for name, runs in found.items():
            runs.append(in_a_process(name, arguments, arguments.batch))
            print(f"round {number + 1} of {arguments.rounds}: {name} {runs[-1]['seconds']:.1f} s", file=sys.stderr, flush=True)
    for ours, theirs in zip(*found.values(), strict=True):
        for a, b in zip(ours["checks"], theirs["checks"], strict=True):
            assert abs(a - b) <= 1e-4 * abs(b), f"the two losses differ: {ours['checks']} and {theirs['checks']}"
    return found


def row(name: str, batch: int, runs: list[dict[str, Any]], peer: list[dict[str, Any]]) -> list[str]:
    """A line of the table; ratios are to the peer's runs of the same rounds, the median of them."""
    seconds, added, process = (statistics.median(run[key] for run in runs) for key in ("seconds", "added", "process"))
    figures = [f"{seconds:.2f}", f"{added / 2**20:.0f}", f"{process / 2**20:.0f}"]
    ratios = [
        f"{statistics.median(a[key] / b[key] for a, b in zip(runs, peer, strict=True)):.3f}" if peer else "-"
        for key in ("seconds", "added")
    ]
    return [name, f"{batch:,}", *figures, *ratios]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16_384, help="pairs of the comparison")
    parser.add_argument("--alone", default="65536", help="pairs of flexiclip's runs without the peer, comma-separated")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", choices=("flexiclip", "open_clip"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.batch, arguments.dim, arguments.threads)))
        return
    from rich.console import Console
    from rich.table import Table

    found = compare(arguments)
    table = Table(title=f"softmax loss, forward and backward, {arguments.dim} wide, float32, {arguments.threads} threads")
    for column in ("loss", "batch", "seconds", "added MB", "process MB", "time / peer", "memory / peer"):
        table.add_column(column, justify="right")
    for name, runs in found.items():
        table.add_row(*row(name, arguments.batch, runs, found["open_clip"]))
    for batch in (int(part) for part in arguments.alone.split(",") if part):
        table.add_row(*row("flexiclip", batch, [in_a_process("flexiclip", arguments, batch)], []))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
