"""Measure the speed of an exported image encoder: eager, compiled, onnxruntime and int8, by length and batch.

    python -m scripts.bench.subjects.encoders                     ViT-S, 240 px, 2 threads (a quarter of an hour)
    python -m scripts.bench.subjects.encoders --model runs/NAME   a model of your own, at the lengths it was trained at
    python -m scripts.bench.subjects.encoders --quick             ViT-Ti, one length (a minute, most of it compiling)

The speeds are in images per second. The forms are the flexible model in eager torch, where each call resizes kernel and grid;
the model with its length baked in, also eager; the model with compiled blocks, with one graph for all lengths as in
train.compile; the ONNX file; and its int8 form. The ratios in brackets, `difference` and `int8 cosine` are relative to the eager
model. `products` is the share of matrix products in onnxruntime's time, from its own profile. In the int8 file all layers are
quantized; `flexiclip export` refuses it if its cosine is below 0.99.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from flexiclip.config import ImageTowerConfig, ModelConfig
from flexiclip.config.schema import Size
from flexiclip.export import onnx
from flexiclip.export.agreement import EXACT, agreement
from flexiclip.export.encoders import ImageEncoder
from flexiclip.model_folder import load_model
from flexiclip.models.clip import FlexiCLIP
from flexiclip.models.text.base import AbsentText
from flexiclip.train.blocks import compile_blocks
from scripts.bench.measure import ratio, take_turns
from scripts.bench.record import Record, options

LENGTHS = (5, 8, 10, 15, 30)
FASTER = 1.2
ABOUT = (
    "This subject gives images per second of one image encoder in five forms: the flexible model in eager torch, the model "
    "with its length baked in, the model with compiled blocks, and the exported ONNX file in onnxruntime, in float32 and "
    "in int8. The ratios in brackets are relative to the eager model."
)
BOUND = (
    "Where onnxruntime gains little, matrix products limit it, which both libraries compute at about the same speed. Its "
    "ratio divided by the share `products` is the ratio that it would reach if everything else cost nothing."
)
PRODUCTS = ("MatMul", "FusedMatMul", "Gemm")
"""Matrix products of onnxruntime, which fuses a product with a scale."""
Encode = Callable[[torch.Tensor], torch.Tensor]


def encoders(model: FlexiCLIP, compiled: FlexiCLIP, seqhw: Size, folder: Path) -> dict[str, Encode]:
    """Return all forms for one length, by name, the eager model first."""
    baked = ImageEncoder(model, seqhw)
    whole, quantized = folder / "whole.onnx", folder / "int8.onnx"
    onnx.write(baked, whole)
    onnx.quantize(whole, quantized)
    return {
        "eager": lambda x: model.encode_image(x, seqhw, normalize=True),
        "baked": baked,
        "compiled": lambda x: compiled.encode_image(x, seqhw, normalize=True),
        "onnxruntime": onnx.open_encoder(whole),
        "int8": onnx.open_encoder(quantized),
    }


class Found(NamedTuple):
    """The measurements at one length and batch."""

    times: dict[str, list[float]]  # seconds of each form, by round
    difference: float  # largest difference of the ONNX file's embeddings
    cosine: float  # smallest cosine of the int8 file's embeddings

    def gain(self, name: str) -> float:
        """Return how many times as fast as the eager model a form is."""
        return ratio(self.times["eager"], self.times[name])


@torch.no_grad()
def measure(works: dict[str, Encode], images: torch.Tensor, rounds: int) -> Found:
    """Measure all forms in turn, after comparing each with the eager model."""
    expected = works["eager"](images)
    found = {name: agreement("random images", expected, work(images)) for name, work in works.items()}
    for name, each in found.items():
        assert name == "int8" or each.within(EXACT), f"{name} is not the model: {each}"
    times = take_turns({name: partial(work, images) for name, work in works.items()}, rounds)
    return Found(times, found["onnxruntime"].difference, found["int8"].cosine)


def share_of_products(path: Path, images: torch.Tensor, threads: int, runs: int) -> float:
    """Return the share of matrix products in the time of onnxruntime's operators. The fastest run of each node counts."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.enable_profiling, settings.log_severity_level = threads, True, 3
    settings.profile_file_prefix = str(path.with_suffix(""))
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    for _ in range(runs):
        session.run(None, {session.get_inputs()[0].name: images.numpy()})
    least: dict[tuple[str, str], int] = {}  # (operator, node) -> microseconds
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            node = event["args"]["op_name"], event["name"]
            least[node] = min(event["dur"], least.get(node, event["dur"]))
    return sum(spent for (operator, _), spent in least.items() if operator in PRODUCTS) / sum(least.values())


def cells(found: Found, batch: int, products: float) -> list[str]:
    """Return the cells for images per second of each form, and the rest of a row."""
    speeds = [f"{batch / statistics.median(each):.1f}" for each in found.times.values()]
    gains = ["" if name == "eager" else f" ({found.gain(name):.2f} x)" for name in found.times]
    both = [speed + gain for speed, gain in zip(speeds, gains, strict=True)]
    return [*both, f"{products:.0%}", f"{found.difference:.0e}", f"{found.cosine:.5f}"]


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = options(__doc__, rounds=7)
    parser.add_argument("--model", help="a model folder or a run folder; default: random weights of --variant")
    parser.add_argument("--variant", default="S")
    parser.add_argument("--seqhw", help="grid sides, with commas between them")
    parser.add_argument("--batches", default="1,32")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.variant, arguments.seqhw, arguments.batches, arguments.rounds = "Ti", "5", "1,2", 1
    return arguments


def open_model(arguments: argparse.Namespace) -> tuple[FlexiCLIP, str, list[Size]]:
    """Return the model, its name, and its lengths."""
    asked: list[Size] = [int(part) for part in arguments.seqhw.split(",")] if arguments.seqhw else []
    if arguments.model:
        loaded = load_model(arguments.model)
        return loaded.model, arguments.model, asked or list(loaded.config.trained_seqhw)
    config = ModelConfig(image=ImageTowerConfig(variant=arguments.variant), text=None)
    return FlexiCLIP(config, AbsentText()).eval(), f"ViT-{arguments.variant}", asked or list(LENGTHS)


def main() -> None:
    """Print the table."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model, name, lengths = open_model(arguments)
    compiled = copy.deepcopy(model)
    compile_blocks(compiled.image_tower)
    height, width = model.image_tower.image_size
    record = Record("encoders", ABOUT)
    table = record.table(
        f"images per second, {name}, {height} px, float32, {arguments.threads} threads",
        *("seqhw", "tokens", "batch", "eager", "baked", "compiled", "onnxruntime", "int8"),
        *("products", "difference", "int8 cosine"),
    )
    for seqhw in lengths:
        gh, gw = model.image_tower.grid_of((height, width), seqhw)
        with TemporaryDirectory() as folder:
            works = encoders(model, compiled, seqhw, Path(folder))
            for batch in map(int, arguments.batches.split(",")):
                images = torch.randn(batch, 3, height, width)
                found = measure(works, images, arguments.rounds)
                products = share_of_products(Path(folder) / "whole.onnx", images, arguments.threads, 1 + arguments.rounds)
                table.add(seqhw, gh * gw, batch, *cells(found, batch, products))
                record.goal(f"seqhw {seqhw}, batch {batch}: onnxruntime / eager", found.gain("onnxruntime"), at_least=FASTER)
    record.notes.append(BOUND)
    record.finish(arguments)


if __name__ == "__main__":
    main()
