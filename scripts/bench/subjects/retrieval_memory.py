"""Measure the peak memory of retrieval in both directions, which works in blocks and never holds all scores.

    python -m scripts.bench.subjects.retrieval_memory           100,000 x 100,000 x 512 (ten minutes on two cores)
    python -m scripts.bench.subjects.retrieval_memory --quick   20,000 x 20,000 (half a minute)

The embeddings are random rows of length 1. With as many captions as images, the median rank must be in the middle, which is
checked. The search runs in a process of its own, whose peak (VmHWM) counts torch, both sets of embeddings (`rows`) and everything
else. Linux only (/proc).
"""

from __future__ import annotations

import json
import time
from typing import Any

from scripts.bench.measure import measure_apart, memory
from scripts.bench.record import Record, options

LIMIT = 2_000_000_000
"""The goal for the peak of the process, in bytes."""

QUICK = 20_000


def measure(images: int, captions: int, dim: int, threads: int) -> dict[str, Any]:
    """Run one retrieval in this process. Returns its seconds, the bytes before and at the peak, and the metrics."""
    import torch
    import torch.nn.functional as F
    from flexiclip_eval.tasks.retrieval import Pairs, retrieval_metrics

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    image_z, text_z = torch.randn(images, dim), torch.randn(captions, dim)
    for z in (image_z, text_z):
        F.normalize(z, dim=1, out=z)  # in place, because a copy of the rows is not part of the search
    number = torch.arange(max(images, captions))  # each row has an answer, and as few further ones as possible
    pairs = Pairs([str(i) for i in range(captions)], number % images, number % captions, images)
    before, start = memory("VmHWM"), time.perf_counter()
    metrics, _ = retrieval_metrics(image_z, text_z, pairs)
    return {"seconds": time.perf_counter() - start, "before": before, "peak": memory("VmHWM"), "metrics": metrics}


def main() -> None:
    """Print the table, write the figures, and fail if random rows do not give random ranks."""
    parser = options(__doc__, rounds=1)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--captions", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--measure", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.images = arguments.captions = QUICK
    sizes = {name: getattr(arguments, name) for name in ("images", "captions", "dim", "threads")}
    if arguments.measure:
        print(json.dumps(measure(**sizes)))
        return
    found = measure_apart("scripts.bench.subjects.retrieval_memory", sizes, flags=("--measure",))
    record = Record(
        "retrieval_memory",
        "This subject measures the time and the peak memory of retrieval in both directions on random unit rows, in a "
        "process of its own.",
    )
    table = record.table(
        f"retrieval in both directions, {arguments.dim} wide, float32, {arguments.threads} threads",
        *("images x captions", "seconds", "before MB", "peak MB", "rows MB", "scores at once would be MB"),
    )
    rows = arguments.images + arguments.captions
    held = [found["before"], found["peak"], 4 * rows * arguments.dim, 4 * arguments.images * arguments.captions]
    shape = f"{arguments.images:,} x {arguments.captions:,}"
    table.add(shape, f"{found['seconds']:.1f}", *(f"{size / 1e6:,.0f}" for size in held))
    record.goal(f"peak of {shape}, GB", found["peak"] / 1e9, at_most=LIMIT / 1e9)
    if arguments.images == arguments.captions:  # with several answers, the best one has a lower rank
        for side in ("image", "text"):
            rank = found["metrics"][f"{side}_retrieval_median_rank"]
            assert abs(rank / arguments.images - 0.5) < 2 / arguments.images**0.5, f"of random rows {rank} is no median rank"
    record.finish(arguments)


if __name__ == "__main__":
    main()
