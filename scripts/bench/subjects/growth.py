"""Measure how cost grows: indexing with shards, the data order with samples, a step with length, its memory with the batch.

    python -m scripts.bench.subjects.growth                   all sections (a quarter of an hour)
    python -m scripts.bench.subjects.growth --sections plan   one of them
    python -m scripts.bench.subjects.growth --quick           small sizes (seconds)

index   Indexing 10 to 10,000 small local shards, without and with the cache. One process reads the headers.
plan    Building the order of up to 10^9 samples in shards of 10,000, and looking up positions: one after the other, as a run
        does, and far apart, where each needs a window that has not been shuffled yet.
step    A training step of ViT-Ti with its text tower at ten lengths, in turn, and the parabola in the tokens that fits best.
memory  The peak (VmHWM) of a process that takes such a step, with the batch in one piece and in micro-batches (GradCache).
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from flexiclip.data.index import index_shards
from flexiclip.data.order import Plan, Source
from scripts.bench.measure import Work, measure_apart, memory, seconds, take_turns
from scripts.bench.record import Record, options
from scripts.bench.samples import write_links
from scripts.bench.training import ALONE, Task, make_stepper, random_pairs

SAMPLES_OF_A_SMALL_SHARD = 16
SAMPLES_OF_A_SHARD = 10_000
WINDOW = 16  # shards, the default of data.window_shards
IN_ORDER, FAR_APART = 100_000, 30  # number of positions that are looked up
LENGTHS = (5, 6, 8, 10, 12, 15, 16, 20, 24, 30)
MICRO_BATCH, LARGEST_PLAIN = 4, 32  # pairs; 32 in one piece at 225 tokens take about 4 GB


def index_times(record: Record, quick: bool, rounds: int) -> None:
    """Measure the seconds to index shards, with the headers read and from the cache."""
    table = record.table(
        f"indexing shards of {SAMPLES_OF_A_SMALL_SHARD} samples of two members, written by webdataset",
        *("shards", "headers read s", "from the cache s", "per shard ms", "cached, per shard ms"),
    )
    curves: dict[str, list[tuple[float, float]]] = {"headers read": [], "from the cache": []}
    for shards in (10, 100) if quick else (10, 100, 1000, 10_000):
        with TemporaryDirectory() as folder:
            urls = write_links(Path(folder), shards, SAMPLES_OF_A_SMALL_SHARD)
            fresh, cached = [], []
            for number in range(rounds):
                index = partial(index_shards, urls, str(Path(folder) / f"cache-{number}"))
                fresh.append(seconds(index))
                cached.append(seconds(index))
        found = statistics.median(fresh), statistics.median(cached)
        table.add(f"{shards:,}", *found, *(1e3 * each / shards for each in found))
        for line, spent in zip(curves.values(), found, strict=True):
            line.append((shards, spent))
    record.curve("Indexing", "shards", "seconds", curves)


def plan_times(record: Record, quick: bool, rounds: int) -> None:
    """Measure the time to build the order of n samples, and to look up positions in it."""
    table = record.table(
        f"the order of shards of {SAMPLES_OF_A_SHARD:,} samples, windows of {WINDOW} shards",
        *("samples", "build ms", "first position ms", "next position us", "far position ms"),
    )
    curves: dict[str, list[tuple[float, float]]] = {"build and first position": [], "next position": [], "far position": []}
    for power in (4, 6) if quick else (4, 5, 6, 7, 8, 9):
        samples = 10**power
        found = [statistics.median(each) for each in zip(*(_plan_round(samples) for _ in range(rounds)), strict=True)]
        build, first, following, far = found
        table.add(f"10^{power}", 1e3 * build, 1e3 * first, 1e6 * following, 1e3 * far)
        for line, spent in zip(curves.values(), (build + first, following, far), strict=True):
            line.append((samples, spent))
    record.curve("Order of the data", "samples", "seconds", curves)


def _plan_round(samples: int) -> tuple[float, float, float, float]:
    """Return the seconds to build a plan, to look up its first position, the next one, and one far from the last."""
    counts = np.full(samples // SAMPLES_OF_A_SHARD, SAMPLES_OF_A_SHARD, dtype=np.int64)
    plans: list[Plan] = []
    build = seconds(lambda: plans.append(Plan([Source(counts)], 0, WINDOW)))
    plan = plans[0]
    first = seconds(lambda: plan[0])
    following = seconds(lambda: [plan[position] for position in range(1, IN_ORDER)]) / IN_ORDER
    places = np.random.default_rng(0).integers(0, samples, FAR_APART).tolist()
    far = seconds(lambda: [plan[position] for position in places]) / FAR_APART
    return build, first, following, far


def step_times(record: Record, quick: bool, rounds: int) -> None:
    """Measure the seconds of a training step at every length, and fit a parabola to them."""
    lengths, batch = (LENGTHS[:4], 1) if quick else (LENGTHS, 8)
    torch.manual_seed(0)
    stepper, inputs = make_stepper(Task("Ti"), ALONE), random_pairs(batch)
    works: dict[str, Work] = {str(seqhw): partial(stepper, inputs, seqhw, 0, 1e-4) for seqhw in lengths}
    spent = [statistics.median(each) for each in take_turns(works, rounds).values()]
    tokens = [seqhw**2 for seqhw in lengths]
    a, b, c = fit_parabola(tokens, spent)
    table = record.table(
        f"a training step, ViT-Ti and text, batch {batch}, float32, {torch.get_num_threads()} threads",
        *("seqhw", "tokens n", "seconds", "a + b n + c n^2", "off by", "share of c n^2"),
    )
    curves: dict[str, list[tuple[float, float]]] = {"measured": [], "a + b n + c n^2": []}
    for seqhw, n, found in zip(lengths, tokens, spent, strict=True):
        fitted = a + b * n + c * n * n
        table.add(seqhw, n, found, fitted, f"{fitted / found - 1:+.0%}", f"{c * n * n / fitted:.0%}")
        for line, y in zip(curves.values(), (found, fitted), strict=True):
            line.append((n, y))
    record.curve("Training step", "tokens of an image", "seconds", curves)
    record.notes.append(f"Seconds of a training step at n tokens: {a:.3g} {b:+.3g} n {c:+.3g} n^2.")


def fit_parabola(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Return (a, b, c) of the parabola y = a + b x + c x^2 with the least sum of squared relative errors.

    The errors are relative because y spans two orders of magnitude.
    """
    powers = np.vander(np.asarray(x, dtype=np.float64), 3, increasing=True)
    a, b, c = np.linalg.lstsq(powers / np.asarray(y)[:, None], np.ones(len(powers)), rcond=None)[0]
    return float(a), float(b), float(c)


def memory_sizes(record: Record, quick: bool, rounds: int) -> None:
    """Measure the peak of a process that takes a training step, by batch. One round is enough, as memory does not vary."""
    seqhw, batches = (5, (4, 8)) if quick else (15, (4, 8, 16, 32, 64, 128, 256))
    table = record.table(
        f"peak of a process that trains ViT-Ti and text at seqhw {seqhw}, float32",
        *("batch", "in one piece MB", f"in micro-batches of {MICRO_BATCH} MB"),
    )
    curves: dict[str, list[tuple[float, float]]] = {"in one piece": [], f"in micro-batches of {MICRO_BATCH}": []}
    for batch in batches:
        peaks = ["-", "-"]
        for i, (line, piece) in enumerate(zip(curves.values(), (batch, MICRO_BATCH), strict=True)):
            if piece <= LARGEST_PLAIN:
                found = measure_apart(
                    "scripts.bench.subjects.growth", {"batch": batch, "micro-batch": piece, "seqhw": seqhw}, flags=("--measure",)
                )
                line.append((batch, found["peak"] / 1e6))
                peaks[i] = f"{found['peak'] / 1e6:,.0f}"
        table.add(batch, *peaks)
    record.curve("Memory of a training step", "batch", "peak MB", curves)


def measure(batch: int, micro_batch: int, seqhw: int) -> dict[str, int]:
    """Take two steps in this process and return its peak. There are two, because the first makes the optimizer's moments."""
    stepper, inputs = make_stepper(Task("Ti", micro_batch), ALONE), random_pairs(batch)
    for step in range(2):
        stepper(inputs, seqhw, step, 1e-4)
    return {"peak": memory("VmHWM")}


SECTIONS: dict[str, Callable[[Record, bool, int], None]] = {
    "index": index_times,
    "plan": plan_times,
    "step": step_times,
    "memory": memory_sizes,
}
"""Each function adds its tables, goals and curves to the record. Its arguments are the record, --quick and --rounds."""


def main() -> None:
    """Measure the sections one after the other."""
    parser = options(__doc__, rounds=3)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    for name in ("batch", "micro-batch", "seqhw"):
        parser.add_argument(f"--{name}", type=int, help=argparse.SUPPRESS)
    arguments: argparse.Namespace = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.measure:
        print(json.dumps(measure(arguments.batch, arguments.micro_batch, arguments.seqhw)))
        return
    record = Record(
        "growth",
        "This subject shows how time and memory grow with the number of shards and samples, the sequence length and the batch.",
    )
    for name in arguments.sections:
        SECTIONS[name](record, arguments.quick, 1 if arguments.quick else arguments.rounds)
    record.finish(arguments)


if __name__ == "__main__":
    main()
