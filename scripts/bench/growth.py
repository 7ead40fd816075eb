"""How cost grows: the index with the number of shards, the order of the data with the number of samples.

    python scripts/bench/growth.py                              all sections (some minutes)
    python scripts/bench/growth.py --sections plan              one of them
    python scripts/bench/growth.py --quick                      small sizes (seconds)

index   10 to 10,000 small local shards, indexed anew and from the cache. Reading headers is work for one process.
plan    building the order of up to 10^9 samples in shards of 10,000, and looking positions up: one after the other, as a run
        does, and far apart, where each needs a window that has not been shuffled yet.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from side_by_side.photographs import write_links
from side_by_side.record import Curves, Record, options
from side_by_side.turns import seconds

from flexiclip.data.index import index_shards
from flexiclip.data.plan import Plan, Source

SAMPLES_OF_A_SMALL_SHARD = 16
SAMPLES_OF_A_SHARD = 10_000
WINDOW = 16  # shards, the default of data.window_shards
IN_ORDER, FAR_APART = 100_000, 30  # positions looked up


def index_times(record: Record, quick: bool, rounds: int) -> None:
    """Seconds to index shards, headers read or not."""
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
    record.curves.append(Curves("Indexing", "shards", "seconds", curves))


def plan_times(record: Record, quick: bool, rounds: int) -> None:
    """Time to build the order of n samples, and to look positions up in it."""
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
    record.curves.append(Curves("Order of the data", "samples", "seconds", curves))


def _plan_round(samples: int) -> tuple[float, float, float, float]:
    """Seconds to build a plan, to find its first position, a following one, and one far from the last."""
    counts = np.full(samples // SAMPLES_OF_A_SHARD, SAMPLES_OF_A_SHARD, dtype=np.int64)
    plans: list[Plan] = []
    build = seconds(lambda: plans.append(Plan([Source(counts)], 0, WINDOW)))
    plan = plans[0]
    first = seconds(lambda: plan[0])
    following = seconds(lambda: [plan[position] for position in range(1, IN_ORDER)]) / IN_ORDER
    places = np.random.default_rng(0).integers(0, samples, FAR_APART).tolist()
    far = seconds(lambda: [plan[position] for position in places]) / FAR_APART
    return build, first, following, far


SECTIONS: dict[str, Callable[[Record, bool, int], None]] = {
    "index": index_times,
    "plan": plan_times,
}
"""Each adds its tables, goals and curves to the record; arguments: the record, --quick, --rounds."""


def main() -> None:
    """Measure the sections one after the other."""
    parser = options(__doc__, rounds=3)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    arguments: argparse.Namespace = parser.parse_args()
    record = Record("growth", "How time and memory grow with shards, samples, lengths and batches.")
    for name in arguments.sections:
        SECTIONS[name](record, arguments.quick, 1 if arguments.quick else arguments.rounds)
    record.finish(arguments)


if __name__ == "__main__":
    main()
