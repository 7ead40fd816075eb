"""Check that gradient caching trains a batch 32 times larger than fits in one piece, in processes with a memory limit.

    python -m scripts.bench.subjects.gradcache                         ViT-Ti at 225 tokens in 1.5 GB (some minutes)
    python -m scripts.bench.subjects.gradcache --limit 4 --variant S   another limit, in GB, and another size of both towers
    python -m scripts.bench.subjects.gradcache --quick                 4 times as large, in 1.3 GB (a minute or two)

Each row is a process of its own under RLIMIT_DATA, which counts all private writable memory, including torch's own. If a step
does not fit, an allocation fails, as on a full GPU. The largest batch P that fits in one piece is found exactly, by doubling and
then bisection. Then a batch of 32 P takes a training step under the same limit, in micro-batches of P / 2. A batch of P takes one
both ways, and loss and gradients must agree. Every process first takes a step of two pairs, so that Adam's moments exist. The
peak is VmHWM of the whole process. Linux only.
"""

from __future__ import annotations

import argparse
import json
import resource
from typing import Any

from scripts.bench.measure import MeasurementError, measure_apart, memory, seconds
from scripts.bench.record import Grid, Record, options

OUT_OF_MEMORY = ("can't allocate memory", "bad_alloc", "MemoryError", "could not create a memory", "Cannot allocate memory")
ABOUT = (
    "This subject finds by trial the largest batch whose training step fits into a memory limit in one piece. It then "
    "trains a multiple of this batch in micro-batches under the same limit."
)
Found = dict[str, Any]


def measure(arguments: argparse.Namespace) -> Found:
    """Take one training step in this process, under the limit. Returns its loss, gradient norm, seconds and peak bytes."""
    limit = int(arguments.limit * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    import torch

    from scripts.bench.training import ALONE, Task, make_stepper, random_pairs

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    stepper = make_stepper(Task(arguments.variant, arguments.micro_batch), ALONE)
    stepper(random_pairs(2), arguments.seqhw, 0, 0.0)  # makes the moments, and does not change the weights
    inputs, taken = random_pairs(arguments.batch), []
    spent = seconds(lambda: taken.append(stepper(inputs, arguments.seqhw, 1, 1e-3)))
    return {"loss": taken[0].loss, "norm": taken[0].norm, "seconds": spent, "peak": memory("VmHWM")}


def attempt(arguments: argparse.Namespace, batch: int, micro_batch: int) -> Found | None:
    """Call measure() in a fresh process. Returns None if the step does not fit."""
    task = {name: getattr(arguments, name) for name in ("variant", "seqhw", "limit", "threads")}
    sizes = {"batch": batch, "micro_batch": micro_batch}
    try:
        return measure_apart(
            "scripts.bench.subjects.gradcache", {**task, **sizes}, ("--measure",), {"OMP_NUM_THREADS": str(arguments.threads)}
        )
    except MeasurementError as failed:
        if not any(sign in failed.said for sign in OUT_OF_MEMORY):
            raise
        return None


def largest_plain(arguments: argparse.Namespace) -> int:
    """Return the largest batch that trains in one piece."""
    fits, too_much = 0, 2
    while attempt(arguments, too_much, too_much):
        fits, too_much = too_much, 2 * too_much
    if not fits:
        raise SystemExit(f"not even two pairs train in {arguments.limit} GB: raise --limit")
    while too_much - fits > 1:
        middle = (fits + too_much) // 2
        if attempt(arguments, middle, middle):
            fits = middle
        else:
            too_much = middle
    return fits


def row(table: Grid, arguments: argparse.Namespace, name: str, batch: int, micro_batch: int) -> Found | None:
    """Measure one row and add it to the table. Returns the measurement, None if the step does not fit."""
    found = attempt(arguments, batch, micro_batch)
    figures = ["out of memory", "", ""]
    if found is not None:
        figures = [f"{found['peak'] / 1e6:.0f}", f"{batch / found['seconds']:.1f}", f"{found['loss']:.6f}"]
    table.add(name, batch, micro_batch, *figures)
    return found


def compare(arguments: argparse.Namespace, record: Record) -> None:
    """Add the table and its goals to the record."""
    plain = largest_plain(arguments)
    half, large = max(1, plain // 2), arguments.factor * plain
    table = record.table(
        f"ViT-{arguments.variant} and text, seqhw {arguments.seqhw}, float32, under {arguments.limit} GB",
        *("step", "batch", "micro-batch", "peak MB", "pairs/s", "loss"),
    )
    whole = row(table, arguments, "plain", plain, plain)
    beyond = row(table, arguments, "plain", plain + 1, plain + 1)
    cached = row(table, arguments, "cached", plain, half)
    many = row(table, arguments, "cached", large, half)
    assert beyond is None, f"{plain + 1} pairs fit, which the search has found too many"
    assert whole is not None
    assert cached is not None
    errors = [abs(whole[key] - cached[key]) / whole[key] for key in ("loss", "norm")]
    record.goal(
        "batch that trains in micro-batches / in one piece", 0 if many is None else large / plain, at_least=arguments.factor
    )
    record.goal(
        "loss and norm of the gradients, in one piece and in micro-batches: largest relative difference",
        max(errors),
        at_most=1e-5,
    )


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = options(__doc__, rounds=1)
    parser.add_argument("--limit", type=float, default=1.5, help="GB of private memory")
    parser.add_argument("--factor", type=int, default=32, help="how many times the plain batch is tried cached")
    parser.add_argument("--variant", default="Ti")
    parser.add_argument("--seqhw", type=int, default=15)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=2, help=argparse.SUPPRESS)
    parser.add_argument("--micro-batch", type=int, default=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.limit, arguments.factor = 1.3, 4
    return arguments


def main() -> None:
    """Print the table."""
    arguments = parse()
    if arguments.measure:
        print(json.dumps(measure(arguments)))
        return
    record = Record("gradcache", ABOUT)
    compare(arguments, record)
    record.finish(arguments)


if __name__ == "__main__":
    main()
