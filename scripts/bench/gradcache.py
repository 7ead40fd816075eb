"""Gradient caching trains a batch 32 x larger than fits plainly into the same memory: real processes under a hard limit.

    python scripts/bench/gradcache.py                         ViT-Ti at 225 tokens in 1.5 GB (some minutes)
    python scripts/bench/gradcache.py --limit 4 --variant S   another limit, in GB, and another size of both towers

Each row is a process of its own under RLIMIT_DATA, which counts all private writable memory, torch's own included: what does
not fit ends with an allocation that fails, as on a full GPU. The largest plain batch P is found exactly, by doubling and then
halving the interval. Then a batch of 32 P takes a training step under the same limit, in micro-batches of P / 2, and one of P
both ways, whose loss and gradients must agree. Every process has taken a step of two pairs before, so that Adam's moments are
there. The peak is VmHWM, of the whole process. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from flexiclip.train.objectives.base import Inputs
    from flexiclip.train.step import Stepper

FACTOR = 32
TOKENS = 32  # a caption's
OUT_OF_MEMORY = ("can't allocate memory", "bad_alloc", "MemoryError", "could not create a memory", "Cannot allocate memory")


def build(variant: str, micro_batch: int) -> Stepper:
    """All of a training step, as the trainer builds it for one rank of plain torch."""
    import torch

    from flexiclip.config import Config, ImageTowerConfig, ModelConfig, TextTowerConfig
    from flexiclip.models.clip import FlexiCLIP
    from flexiclip.models.text import TextTransformer
    from flexiclip.train.engines.engine import TorchEngine
    from flexiclip.train.engines.optim import ScalarOptimizer
    from flexiclip.train.objectives.contrastive import Contrastive
    from flexiclip.train.processes.ranks import Ranks
    from flexiclip.train.step import Stepper

    text = TextTowerConfig(variant=variant, vocab_size=4096, pad_id=0, eos_id=1, context_length=TOKENS)
    config = Config(model=ModelConfig(image=ImageTowerConfig(variant=variant), text=text))
    model = FlexiCLIP(config.model, TextTransformer(text))
    alone = Ranks(rank=0, world=1, local_rank=0, device=torch.device("cpu"))
    objective = Contrastive(model, config.loss, bf16=False)
    return Stepper(
        objective=objective,
        engine=TorchEngine(objective.towers, config, alone),
        scalars=ScalarOptimizer(model.scalars(), config.optimizer, config.model.logit_scale_max),
        micro_batch=lambda _: micro_batch,
        seed=0,
        ranks=alone,
    )


def pairs(batch: int) -> Inputs:
    """Random images of 240 px and captions."""
    import torch

    from flexiclip.train.objectives.base import Inputs

    images = torch.randint(256, (batch, 3, 240, 240), dtype=torch.uint8)
    return Inputs(images, torch.randint(2, 4096, (batch, TOKENS)), torch.arange(batch))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """One training step in this process, under the limit."""
    limit = int(arguments.limit * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    import torch

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    stepper = build(arguments.variant, arguments.micro_batch)
    stepper(pairs(2), arguments.seqhw, 0, 0.0)  # moments now, and no change of the weights
    inputs = pairs(arguments.batch)
    start = time.perf_counter()
    taken = stepper(inputs, arguments.seqhw, 1, 1e-3)
    seconds = time.perf_counter() - start
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    return {"loss": taken.loss, "norm": taken.norm, "seconds": seconds, "peak": peak}


def attempt(arguments: argparse.Namespace, batch: int, micro_batch: int) -> dict[str, Any] | None:
    """measure() in a fresh process; None when it does not fit."""
    options = [f"--{key}={getattr(arguments, key)}" for key in ("variant", "seqhw", "limit", "threads")]
    command = [sys.executable, __file__, "--measure", f"--batch={batch}", f"--micro-batch={micro_batch}", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    if not any(sign in done.stderr for sign in OUT_OF_MEMORY):
        raise SystemExit(f"batch {batch} failed, and not for want of memory:\n{done.stderr[-3000:]}")
    return None


def largest_plain(arguments: argparse.Namespace) -> int:
    """The largest batch that trains in one piece."""
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


def row(arguments: argparse.Namespace, name: str, batch: int, micro_batch: int) -> tuple[list[str], dict[str, Any] | None]:
    """A row of the table, and what was measured."""
    found = attempt(arguments, batch, micro_batch)
    start = [name, str(batch), str(micro_batch)]
    if found is None:
        return [*start, "out of memory", "", ""], None
    speed = batch / found["seconds"]
    return [*start, f"{found['peak'] / 1e6:.0f}", f"{speed:.1f}", f"{found['loss']:.6f}"], found


def report(arguments: argparse.Namespace) -> bool:
    """Print the table; whether the claim holds."""
    plain = largest_plain(arguments)
    half = max(1, plain // 2)
    cases = [("plain", plain, plain), ("plain", plain + 1, plain + 1), ("cached", plain, half), ("cached", FACTOR * plain, half)]
    table = Table(title=f"ViT-{arguments.variant} and text, seqhw {arguments.seqhw}, float32, under {arguments.limit} GB")
    for column in ("step", "batch", "micro-batch", "peak MB", "pairs/s", "loss"):
        table.add_column(column, justify="right")
    measured = []
    for case in cases:
        cells, found = row(arguments, *case)
        table.add_row(*cells)
        measured.append(found)
    Console(width=110).print(table)
    whole, beyond, cached, large = measured
    if whole is None or cached is None or large is None or beyond is not None:
        return False
    errors = [abs(whole[key] - cached[key]) / whole[key] for key in ("loss", "norm")]
    print(f"plain and cached at {plain}: loss differs by {errors[0]:.0e}, the norm of the gradients by {errors[1]:.0e}")
    print(f"{FACTOR * plain} pairs train where {plain} fit plainly: {FACTOR} x")
    return max(errors) < 1e-5


def main() -> int:
    """0 when the claim holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=1.5, help="GB of private memory")
    parser.add_argument("--variant", default="Ti")
    parser.add_argument("--seqhw", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure", action="store_true", help="be one of the measured processes")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--micro-batch", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments)))
        return 0
    return 0 if report(arguments) else 1


if __name__ == "__main__":
    sys.exit(main())
