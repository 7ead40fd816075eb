"""What an exported image encoder gains: onnxruntime against eager torch on the same threads, at every length, side by side.

    python scripts/bench/export.py                           ViT-S, batch 8, 240 px, 2 threads (a few minutes)
    python scripts/bench/export.py --model runs/NAME         a model of your own, at the lengths it was trained at
    python scripts/bench/export.py --variant Ti --quick      ViT-Ti at three lengths, batch 2 (under a minute)

The columns: images a second of the flexible model in eager torch (each call resizes kernel and grid), of the same length baked
in, still eager, of the ONNX file and of its int8 form. Times are the best of some rounds, taken in turns in one process, so that
a busy machine slows all alike; the ratios are to the flexible model. `difference` and `int8 cosine` are to the model too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.table import Table

from flexiclip.bundle import load_model
from flexiclip.config import ImageTowerConfig, ModelConfig
from flexiclip.export import onnx
from flexiclip.export.agreement import agreement
from flexiclip.export.encoders import ImageEncoder
from flexiclip.models.clip import FlexiCLIP
from flexiclip.models.text.base import AbsentText

LENGTHS = (5, 8, 10, 15, 30)
Work = Callable[[torch.Tensor], torch.Tensor]


def best_times(works: Sequence[Work], images: torch.Tensor, rounds: int) -> list[float]:
    """The shortest time of each work, in seconds, over rounds in which each has its turn; the first round does not count."""
    best = [float("inf")] * len(works)
    for turn in range(rounds + 1):
        for i, work in enumerate(works):
            start = time.perf_counter()
            work(images)
            if turn:
                best[i] = min(best[i], time.perf_counter() - start)
    return best


@torch.inference_mode()
def measure(model: FlexiCLIP, seqhw: int, images: torch.Tensor, rounds: int) -> list[str]:
    """A row of the table."""
    baked = ImageEncoder(model, seqhw)
    with TemporaryDirectory() as folder:
        whole, quantized = Path(folder) / "whole.onnx", Path(folder) / "int8.onnx"
        with torch.inference_mode(False):
            onnx.write(baked, whole)
            onnx.quantize(whole, quantized)
        works: list[Work] = [
            lambda x: model.encode_image(x, seqhw, normalize=True),
            baked,
            onnx.open_encoder(whole),
            onnx.open_encoder(quantized),
        ]
        expected = works[0](images)
        found = [agreement("", expected, work(images)) for work in works[1:]]
        times = best_times(works, images, rounds)
    speeds = [f"{len(images) / t:.1f}" + (f" ({times[0] / t:.2f}x)" if i else "") for i, t in enumerate(times)]
    return [str(seqhw), str(seqhw**2), *speeds, f"{found[1].difference:.0e}", f"{found[2].cosine:.5f}"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model folder or a run folder; default: random weights of --variant")
    parser.add_argument("--variant", default="S")
    parser.add_argument("--seqhw", type=lambda text: [int(part) for part in text.split(",")], help="grid sides, comma-separated")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if arguments.model:
        loaded = load_model(arguments.model)
        model, lengths = loaded.model, loaded.config.patch.seqhw
    else:
        config = ModelConfig(image=ImageTowerConfig(variant=arguments.variant), text=None)
        model, lengths = FlexiCLIP(config, AbsentText()).eval(), LENGTHS
    lengths = arguments.seqhw or (lengths[:3] if arguments.quick else lengths)
    batch, rounds = (2, 3) if arguments.quick else (arguments.batch_size, arguments.rounds)
    images = torch.randn(batch, 3, *model.image_tower.image_size)
    table = Table(title=f"images a second, batch {batch}, {arguments.threads} threads")
    for column in ("seqhw", "tokens", "torch", "torch, baked", "onnxruntime", "int8", "difference", "int8 cosine"):
        table.add_column(column, justify="right")
    for seqhw in lengths:
        table.add_row(*measure(model, seqhw, images, rounds))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
