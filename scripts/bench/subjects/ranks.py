"""Measure what a second rank gains: a training step on one rank and on two, with one thread and the same batch per rank.

    python -m scripts.bench.subjects.ranks           ViT-Ti with its text tower, 32 pairs per rank, seqhw 15 and 8 (some minutes)
    python -m scripts.bench.subjects.ranks --quick   two pairs per rank, seqhw 5 (half a minute)

torchrun starts each run, over gloo, with the trainer's own ranks, engine (DistributedDataParallel) and loss over the global
batch. Runs on one and on two ranks take turns. The throughput of two ranks is 2 x the time of one, divided by the time of two.
`apart` means two runs of one rank at the same time, which share only the machine; this is the most that two ranks can reach on
it. `reducing` is the time of an all-reduce with as many bytes as the gradients, which two ranks need and one does not.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from scripts.bench.measure import measure_apart, ratio
from scripts.bench.record import Record, options

ONE, TWO, APART = "1", "2", "2 runs apart"
THROUGHPUT = 1.9
ABOUT = (
    "This subject gives pairs per second of a training step (both towers, loss over the global batch, AdamW) on one rank "
    "and on two ranks, with one thread each and the same number of pairs per rank."
)


def measure(variant: str, seqhw: int, batch: int, steps: int, bf16: bool) -> dict[str, Any] | None:
    """Run the steps as one of the ranks. The main rank returns their seconds and losses, the others None."""
    import torch
    import torch.distributed as dist

    from flexiclip.train.ranks import joined_ranks
    from scripts.bench.measure import seconds
    from scripts.bench.training import Task, make_stepper, random_pairs

    with joined_ranks(process_group=False, threads=1) as ranks:
        torch.manual_seed(0)
        stepper = make_stepper(Task(variant, bf16=bf16), ranks)
        inputs = random_pairs(batch)
        losses, times = [], []
        for step in range(steps + 1):
            ranks.barrier()
            times.append(seconds(lambda: losses.append(stepper(inputs, seqhw, step, 1e-4).loss)))  # noqa: B023
        gradients = torch.zeros(sum(p.numel() for p in stepper.engine.towers.parameters()))
        reducing = [seconds(lambda: dist.all_reduce(gradients)) for _ in range(3)] if ranks.world > 1 else [0.0]
        found = {"seconds": times[1:], "losses": losses, "reducing": min(reducing), "bytes": 4 * gradients.numel()}
        return found if ranks.main else None


Runs = dict[str, list[dict[str, Any]]]
"""ONE, TWO or APART -> the measurement of each round."""


def runs(seqhw: int, arguments: argparse.Namespace) -> Runs:
    """Measure one rank, two ranks and two runs apart, in turn."""
    options = {"seqhw": seqhw, **{name: getattr(arguments, name) for name in ("variant", "batch", "steps", "precision")}}

    def run(ranks: int) -> dict[str, Any]:
        return measure_apart("scripts.bench.subjects.ranks", options, flags=("--measure",), ranks=ranks)

    found: Runs = {ONE: [], TWO: [], APART: []}
    for _ in range(arguments.rounds):
        found[ONE].append(run(1))
        found[TWO].append(run(2))
        with ThreadPoolExecutor(2) as pool:
            found[APART].append(max(pool.map(run, (1, 1)), key=second))
    return found


def rows(seqhw: int, found: Runs, batch: int) -> Iterator[list[str]]:
    """Yield a row of the table for each."""
    for side, each in found.items():
        seconds = statistics.median(second(run) for run in each)
        at_once = 1 if side == ONE else 2
        reducing = f"{1e3 * statistics.median(run['reducing'] for run in each):.0f}" if side == TWO else "-"
        yield [
            str(seqhw),
            side,
            f"{seconds:.3g}",
            f"{at_once * batch / seconds:.1f}",
            f"{throughput(found, side):.2f} x",
            reducing,
        ]


def second(run: dict[str, Any]) -> float:
    """Return the seconds of a step of one run."""
    return statistics.median(run["seconds"])


def throughput(found: Runs, side: str) -> float:
    """Return the pairs per second relative to one rank."""
    return (1 if side == ONE else 2) * ratio([second(run) for run in found[ONE]], [second(run) for run in found[side]])


def check(found: Runs, batch: int) -> None:
    """Check that before training, the loss on two ranks is that on one rank plus log 2.

    Every rank draws the same pairs from one seed, so each image meets each caption twice, among twice as many negatives.
    """
    one, two = (found[side][0]["losses"][0] for side in (ONE, TWO))
    assert abs(two - one - math.log(2)) < 1e-3, f"{batch} pairs: a loss of {one} on one rank and of {two} on two"


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = options(__doc__, rounds=3, threads=1)
    parser.add_argument("--variant", default="Ti")
    parser.add_argument("--batch", type=int, default=32, help="pairs per rank")
    parser.add_argument("--seqhw", default="15,8", help="grid sides, with commas between them")
    parser.add_argument("--steps", type=int, default=5, help="steps of one run")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.batch, arguments.seqhw, arguments.steps, arguments.rounds = 2, "5", 1, 1
    return arguments


def main() -> None:
    """Print the table."""
    arguments = parse()
    if arguments.measure:
        bf16 = arguments.precision == "bf16"
        found = measure(arguments.variant, int(arguments.seqhw), arguments.batch, arguments.steps, bf16)
        if found is not None:
            print(json.dumps(found))
        return
    record = Record("ranks", ABOUT)
    table = record.table(
        f"ViT-{arguments.variant} and text, {arguments.batch} pairs per rank, {arguments.precision}, one thread per rank",
        *("seqhw", "ranks", "step s", "pairs/s", "throughput", "reducing ms"),
    )
    for seqhw in map(int, arguments.seqhw.split(",")):
        measured = runs(seqhw, arguments)
        check(measured, arguments.batch)
        for row in rows(seqhw, measured, arguments.batch):
            table.add(*row)
        record.goal(f"seqhw {seqhw}: two ranks / one", throughput(measured, TWO), at_least=THROUGHPUT)
    record.finish(arguments)


if __name__ == "__main__":
    main()
