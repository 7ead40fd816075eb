"""What retrieval holds in memory: as many captions as images, found both ways in blocks, nothing of the size captions x images.

    python scripts/bench/retrieval_memory.py                                     100,000 x 100,000 x 512 (ten minutes on a core)
    python scripts/bench/retrieval_memory.py --images 20000 --captions 20000     smaller galleries (half a minute)

Random unit rows, so that the median ranks of equal numbers are the middle, which is checked. The search is a process of its own,
whose peak (VmHWM) counts torch, both sets of embeddings (`rows`) and everything else. Linux only (/proc).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SIZES = ("images", "captions", "dim", "threads")

LIMIT = 2_000_000_000
"""Bytes that the process must stay under."""


def peak() -> int:
    """VmHWM of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def measure(images: int, captions: int, dim: int, threads: int) -> dict[str, Any]:
    """One retrieval in this process."""
    import torch
    import torch.nn.functional as F
    from flexiclip_eval.tasks.retrieval import Pairs, retrieval_metrics

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    image_z, text_z = torch.randn(images, dim), torch.randn(captions, dim)
    for z in (image_z, text_z):
        F.normalize(z, dim=1, out=z)  # in place: a copy of the rows is no part of the search
    number = torch.arange(max(images, captions))  # each has an answer, and as few others as there can be
    pairs = Pairs([str(i) for i in range(captions)], number % images, number % captions, images)
    before, start = peak(), time.perf_counter()
    metrics, _ = retrieval_metrics(image_z, text_z, pairs)
    return {"seconds": time.perf_counter() - start, "before": before, "peak": peak(), "metrics": metrics}


def main() -> None:
    """Print the table, write the figures, and fail where the process grew beyond LIMIT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--captions", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("retrieval_memory.json"))
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.images, arguments.captions, arguments.dim, arguments.threads)))
        return
    from rich.console import Console
    from rich.table import Table

    options = [f"--{name}={getattr(arguments, name)}" for name in SIZES]
    done = subprocess.run([sys.executable, __file__, "--measure", *options], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    arguments.output.write_text(json.dumps({name: getattr(arguments, name) for name in SIZES} | found, indent=2) + "\n")
    table = Table(title=f"retrieval both ways, {arguments.dim} wide, float32, {arguments.threads} threads")
    for column in ("images x captions", "seconds", "before MB", "peak MB", "rows MB", "scores at once would be MB"):
        table.add_column(column, justify="right")
    rows = arguments.images + arguments.captions
    sizes = [found["before"], found["peak"], 4 * rows * arguments.dim, 4 * arguments.images * arguments.captions]
    shape = f"{arguments.images:,} x {arguments.captions:,}"
    table.add_row(shape, f"{found['seconds']:.1f}", *(f"{size / 1e6:,.0f}" for size in sizes))
    Console(width=110).print(table)
    if arguments.images == arguments.captions:  # with several answers each, the best of them stands further up
        for side in ("image", "text"):
            rank = found["metrics"][f"{side}_retrieval_median_rank"]
            assert abs(rank / arguments.images - 0.5) < 2 / arguments.images**0.5, f"of random rows {rank} is no median rank"
    assert found["peak"] < LIMIT, f"the search took {found['peak'] / 1e6:,.0f} MB, more than {LIMIT / 1e6:,.0f}"


if __name__ == "__main__":
    main()
