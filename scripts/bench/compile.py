"""What train.compile costs and gains: eager and compiled towers, forward and backward, at every length, side by side.

    python scripts/bench/compile.py                          ViT-Ti with its text tower, batch 8, 240 px, 2 threads (some minutes)
    python scripts/bench/compile.py --precision bf16 --variant S
    python scripts/bench/compile.py --quick                  three lengths, batch 4 (a minute, most of it compiling)

Each step is what a training step computes of the towers: embed, and go backward from the embeddings. `first s` is the first
compiled step at a length: the first row holds the compilation, and the others show that there is none. Steady times are the best
of some rounds in which eager and compiled take turns, so that a busy machine slows both. Graphs are counted at the end.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
import time

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from flexiclip.config import ImageTowerConfig, ModelConfig, TextTowerConfig
from flexiclip.models.clip import FlexiCLIP
from flexiclip.models.text import TextTransformer
from flexiclip.train.engines.blocks import compile_blocks
from flexiclip.train.engines.towers import Towers

LENGTHS = (5, 6, 8, 10, 12, 15, 16, 20, 24, 30)
CONTEXT = 32


def build(variant: str, bf16: bool) -> tuple[Towers, Towers]:
    """The same towers, eager and compiled."""
    text = TextTowerConfig(variant=variant, vocab_size=4096, pad_id=0, eos_id=1, context_length=CONTEXT)
    model = FlexiCLIP(ModelConfig(image=ImageTowerConfig(variant=variant), text=text), TextTransformer(text))
    other = copy.deepcopy(model)
    compile_blocks(other.image_tower)
    compile_blocks(other.text_tower)
    return Towers(model, bf16), Towers(other, bf16)


def step(towers: Towers, images: Tensor, tokens: Tensor, seqhw: int) -> tuple[float, Tensor]:
    """Seconds of one forward and backward pass, and the image embeddings."""
    towers.zero_grad(set_to_none=True)
    start = time.perf_counter()
    zimg, ztxt = towers(images, tokens, seqhw)
    (zimg * ztxt).sum().backward()
    return time.perf_counter() - start, zimg.detach()


def measure(pair: tuple[Towers, Towers], images: Tensor, seqhw: int, rounds: int) -> list[str]:
    """A row of the table; captions are as long as the images' grid is wide."""
    tokens = torch.randint(2, 4096, (len(images), min(seqhw, CONTEXT)))
    first, compiled = step(pair[1], images, tokens, seqhw)
    _, eager = step(pair[0], images, tokens, seqhw)
    best = [float("inf"), float("inf")]
    for _ in range(rounds):
        for i, towers in enumerate(pair):
            best[i] = min(best[i], step(towers, images, tokens, seqhw)[0])
    speeds = [len(images) / seconds for seconds in best]
    difference = float((compiled - eager).abs().max())
    cells = (f"{first:.2f}", f"{speeds[0]:.1f}", f"{speeds[1]:.1f}", f"{speeds[1] / speeds[0]:.2f}x", f"{difference:.0e}")
    return [str(seqhw), str(seqhw**2), *cells]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="Ti")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    lengths = LENGTHS[:3] if arguments.quick else LENGTHS
    batch, rounds = (4, 3) if arguments.quick else (arguments.batch_size, arguments.rounds)
    images = torch.randint(256, (batch, 3, 240, 240), dtype=torch.uint8)
    print(f"ViT-{arguments.variant} and its text tower, {arguments.precision}, batch {batch}, {arguments.threads} threads\n")
    print("| seqhw | tokens | first s | eager pairs/s | compiled pairs/s | gain | difference |")
    print("|---|---|---|---|---|---|---|", flush=True)
    # A cache of its own, so that the first row is what a first run pays.
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        pair = build(arguments.variant, arguments.precision == "bf16")
        for seqhw in lengths:
            print("| " + " | ".join(measure(pair, images, seqhw, rounds)) + " |", flush=True)
    graphs, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
    print(f"\n{graphs} graphs for {len(lengths)} lengths of both towers, {breaks} graph breaks")


if __name__ == "__main__":
    main()
