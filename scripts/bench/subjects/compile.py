"""Measure what train.compile costs and gains: eager and compiled towers, forward and backward, at every length.

    python -m scripts.bench.subjects.compile                                ViT-Ti and text, batch 8, 2 threads (some minutes)
    python -m scripts.bench.subjects.compile --precision bf16 --variant S
    python -m scripts.bench.subjects.compile --quick                        two lengths, batch 2 (a minute, most of it compiling)

Each step is the towers' part of a training step: embed, and go backward from the embeddings. `first s` is the time of the first
compiled step at a length. The first row includes the compilation, and the others show that it is done only once. The gain is
measured on later steps, in turn with eager ones.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from flexiclip.train.blocks import compile_blocks
from flexiclip.train.towers import Towers
from scripts.bench.measure import ratio, seconds, take_turns
from scripts.bench.record import Grid, Record, options
from scripts.bench.training import TOKENS, VOCABULARY, make_model, random_pairs

LENGTHS = (5, 6, 8, 10, 12, 15, 16, 20, 24, 30)
ABOUT = (
    "This subject times the forward and backward pass of both towers, eager and with `train.compile`, at every length. "
    "`first s` is what compiling costs once."
)
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}
"""Largest allowed difference in a component of the embeddings. In bf16 the compiler rounds in other places."""


def step_of(towers: Towers, images: Tensor, tokens: Tensor, seqhw: int) -> Callable[[], Tensor]:
    """Return a function that runs forward and backward and returns the image embeddings."""

    def step() -> Tensor:
        towers.zero_grad(set_to_none=True)
        zimg, ztxt = towers(images, tokens, seqhw)
        (zimg * ztxt).sum().backward()
        return zimg.detach()

    return step


def measure(table: Grid, pair: dict[str, Towers], images: Tensor, seqhw: int, arguments: argparse.Namespace) -> None:
    """Measure one length and add a row to the table. Captions have as many tokens as the image grid is wide, at most TOKENS."""
    tokens = torch.randint(2, VOCABULARY, (len(images), min(seqhw, TOKENS)))
    works = {name: step_of(towers, images, tokens, seqhw) for name, towers in pair.items()}
    found: list[Tensor] = []
    first = seconds(lambda: found.append(works["compiled"]()))
    difference = float((found[0] - works["eager"]()).abs().max())
    assert difference <= TOLERANCE[arguments.precision], f"seqhw {seqhw}: compiled embeddings differ by {difference:.0e}"
    times = take_turns(works, arguments.rounds)
    speeds = [f"{len(images) / statistics.median(each):.1f}" for each in times.values()]
    gain = ratio(times["eager"], times["compiled"])
    table.add(seqhw, seqhw**2, f"{first:.2f}", *speeds, f"{gain:.2f} x", f"{difference:.0e}")


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = options(__doc__, rounds=7)
    parser.add_argument("--variant", default="Ti")
    parser.add_argument("--precision", choices=tuple(TOLERANCE), default="fp32")
    parser.add_argument("--batch-size", type=int, default=8)
    arguments = parser.parse_args()
    arguments.lengths = LENGTHS
    if arguments.quick:
        arguments.lengths, arguments.batch_size, arguments.rounds = LENGTHS[:2], 2, 1
    return arguments


def main() -> None:
    """Print the table."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    images = random_pairs(arguments.batch_size).images
    record = Record("compile", ABOUT)
    table = record.table(
        f"ViT-{arguments.variant} and text, {arguments.precision}, batch {arguments.batch_size}, {arguments.threads} threads",
        *("seqhw", "tokens", "first s", "eager pairs/s", "compiled pairs/s", "gain", "difference"),
    )
    # With a new cache, the first row shows the cost of a first run.
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        model = make_model(arguments.variant)
        other = copy.deepcopy(model)
        for tower in (other.image_tower, other.text_tower):
            compile_blocks(tower)
        autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=arguments.precision == "bf16")
        pair = {name: Towers(each, autocast) for name, each in (("eager", model), ("compiled", other))}
        for seqhw in arguments.lengths:
            measure(table, pair, images, seqhw, arguments)
    graphs, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
    record.notes.append(f"{graphs} graphs for {len(arguments.lengths)} lengths of both towers, {breaks} graph breaks.")
    record.finish(arguments)


if __name__ == "__main__":
    main()
