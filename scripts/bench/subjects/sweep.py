"""Compare an evaluation at ten lengths in one sweep with its parts timed alone, and with ten runs of CLIP_benchmark.

    python -m scripts.bench.subjects.sweep                       small, Ti and B; JPEGs of 640x480 (a quarter of an hour)
    python -m scripts.bench.subjects.sweep --images small=2000   one tower (eight minutes)
    python -m scripts.bench.subjects.sweep --quick               a small check that it works (a minute)

Both libraries classify the same images with the same model, batch size, threads and number of decoders (threads in flexiclip,
processes in CLIP_benchmark). CLIP_benchmark evaluates one length per run, with a wrapper of the model for each length. Its
accuracies must agree with ours. `cost` is the time of the sweep divided by that of one decoding and the ten encodings; the goal
is at most 1.1. `faster` is the time of CLIP_benchmark's ten runs divided by that of the sweep. A B tower takes about 100 times as
long as the small one, so give it fewer images.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from flexiclip_eval import EvalOptions, evaluate_suites
from flexiclip_eval.data.images import ImageBlock
from flexiclip_eval.suites.load import load_datasets
from PIL import Image
from torch import Tensor, nn

from flexiclip.config import Config, from_dict
from flexiclip.data.images import normalize
from flexiclip.data.tokenizers import train_sentencepiece
from flexiclip.model_folder import LoadedModel, build_model
from scripts.bench.measure import Work, ratio, take_turns
from scripts.bench.record import Record, options

LENGTHS = (5, 6, 8, 10, 12, 15, 16, 20, 24, 30)
TOWERS: dict[str, dict[str, Any]] = {
    "small": {"width": 32, "depth": 2, "heads": 2},  # as in the debug recipe
    "ti": {"variant": "Ti"},
    "b": {"variant": "B"},
}
CLASSES = tuple(f"thing {i}" for i in range(10))
TEMPLATES = ("a photo of a {c}.", "{c}")
Accuracies = dict[str, list[float]]
"""Library -> acc1 at each length."""

ABOUT = (
    "This subject runs zero-shot classification at ten lengths in one pass. It compares the pass with its parts timed "
    "alone, which are one pass of decoding and the ten encodings, and with CLIP_benchmark's own run for each length on the "
    "same model, shards, batch size, threads and number of decoders."
)


def write_images(folder: Path, count: int, shards: int) -> str:
    """Write shards of JPEGs of 640x480, smooth with some noise like photographs, and a suite that classifies them.

    Returns the path of the suite.
    """
    rng = np.random.default_rng(0)
    for shard in range(shards):
        with tarfile.open(folder / f"images-{shard}.tar", "w") as tar:
            write_shard(tar, range(count * shard // shards, count * (shard + 1) // shards), rng)
    task = {"kind": "classification", "label": "cls", "classes": CLASSES, "templates": TEMPLATES}
    dataset = {"name": "jpegs", "shards": str(folder / "images-*.tar"), "tasks": [task]}
    (folder / "suite.yaml").write_text(json.dumps({"datasets": [dataset]}), encoding="utf-8")
    return str(folder / "suite.yaml")


def write_shard(tar: tarfile.TarFile, numbers: range, rng: np.random.Generator) -> None:
    """Write the images with these numbers, and their classes."""
    for i in numbers:
        rough = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((640, 480), Image.Resampling.BICUBIC)
        noisy = np.asarray(rough).astype(np.int16) + rng.integers(-12, 13, (480, 640, 3), dtype=np.int16)
        jpeg = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(jpeg, "JPEG", quality=90)
        for name, data in ((f"{i:05d}.jpg", jpeg.getvalue()), (f"{i:05d}.cls", str(i % len(CLASSES)).encode())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def make_model(tower: str, folder: Path) -> LoadedModel:
    """Return an untrained model with this image tower at 240 px and a small text tower."""
    tokenizer = train_sentencepiece([*CLASSES, "a photo of a thing."] * 4, folder / "words.model", vocab_size=40, lowercase=True)
    data = {
        "model": {"image": TOWERS[tower], "text": {"width": 64, "depth": 1, "heads": 1}, "embed_dim": 64},
        "tokenizer": {"path": str(tokenizer), "context_length": 16},
        "patch": {"seqhw": list(LENGTHS)},
    }
    loaded = build_model(from_dict(Config, data))
    loaded.model.eval()
    return loaded


class AtOneLength(nn.Module):
    """A model at a fixed length, for CLIP_benchmark, which calls encode_image without a length."""

    def __init__(self, loaded: LoadedModel, seqhw: int) -> None:
        super().__init__()
        self.inner, self.seqhw = loaded.model, seqhw

    def encode_image(self, images: Tensor) -> Tensor:
        """Return the embeddings [B, D] of images [B, 3, 240, 240]."""
        return self.inner.encode_image(images, self.seqhw)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Return the embeddings [B, D] of tokens [B, L]."""
        return self.inner.encode_text(tokens)


def clip_benchmark_runs(loaded: LoadedModel, shards: list[str], batch_size: int, workers: int) -> list[float]:
    """Return acc1 at each length, from one run of CLIP_benchmark per length with its webdataset pipeline."""
    import webdataset
    from clip_benchmark.metrics.zeroshot_classification import run_classification, zero_shot_classifier

    found = []
    for seqhw in LENGTHS:
        data = (
            webdataset.WebDataset(shards, shardshuffle=False)
            .decode("pil")
            .to_tuple("jpg", "cls")
            .map_tuple(loaded.transform, int)
        )
        loader = torch.utils.data.DataLoader(data.batched(batch_size), batch_size=None, num_workers=workers)
        model = AtOneLength(loaded, seqhw)
        # These are two of the three steps of its evaluate. The third, its accuracy, fails since numpy 2.4, which does not accept
        # an array of one number as a number.
        weights = zero_shot_classifier(model, loaded.tokenizer, list(CLASSES), list(TEMPLATES), "cpu", amp=False)
        logits, target = run_classification(model, weights, loader, "cpu", amp=False)
        found.append((logits.argmax(1) == target).float().mean().item())
    return found


def works(loaded: LoadedModel, suite: str, folder: Path, options: argparse.Namespace, found: Accuracies) -> dict[str, Work]:
    """Return the sweep, its two parts alone, and CLIP_benchmark's ten runs. The sweep and the ten runs fill `found`."""
    size, workers = options.batch_size, options.workers
    batches: list[Tensor] = []

    def sweep() -> None:
        rows = evaluate_suites([("model", loaded)], [suite], options=EvalOptions(batch_size=size, workers=workers))
        found["flexiclip"] = [row.metrics["acc1"] for row in rows]

    def decode() -> None:
        block = ImageBlock(load_datasets([suite])[0], loaded.transform, workers=workers, cache_bytes=0)
        batches[:] = block.batches(block.batch_size(size), ahead=0)

    @torch.no_grad()
    def encode() -> None:
        preprocess = loaded.config.model.preprocess
        for batch in batches:
            pixels = normalize(batch, preprocess.mean, preprocess.std)
            for seqhw in LENGTHS:
                loaded.model.encode_image(pixels, seqhw)

    def ten_runs() -> None:
        shards = [str(path) for path in sorted(folder.glob("images-*.tar"))]
        with contextlib.redirect_stderr(io.StringIO()):  # it prints progress bars
            found["CLIP_benchmark"] = clip_benchmark_runs(loaded, shards, size, workers)

    return {"sweep": sweep, "decoding": decode, "encoding": encode, "CLIP_benchmark": ten_runs}


def measure(tower: str, count: int, options: argparse.Namespace) -> tuple[dict[str, list[float]], float]:
    """Return the seconds of each work by round, and the largest difference of an accuracy.

    Raises AssertionError if an accuracy differs by more than one image.
    """
    found: Accuracies = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        suite, loaded = write_images(folder, count, max(1, options.workers)), make_model(tower, folder)
        with torch.no_grad():
            for seqhw in LENGTHS:  # a warm-up, so that no side pays for allocation and the choice of kernels
                loaded.model.encode_image(torch.zeros(options.batch_size, 3, 240, 240), seqhw)
        times = take_turns(works(loaded, suite, folder, options, found), options.rounds, warm_up=0)
    difference = max(abs(a - b) for a, b in zip(*found.values(), strict=True))
    assert difference * count <= 1.001, f"{tower}: the accuracies differ by more than one image: {found}"
    return times, difference


def main() -> None:
    """Print the table and, with --output, write the JSON."""
    parser = options(__doc__, rounds=3)
    parser.add_argument("--images", default="small=2000,ti=64,b=8", help="TOWER=IMAGES of each tower, with commas between them")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.images, arguments.rounds = "small=64", 1
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    record = Record("sweep", ABOUT)
    table = record.table(
        f"ten lengths, batch {arguments.batch_size}, {arguments.threads} threads, {arguments.workers} decoding",
        *("tower", "images", "sweep s", "decoding s", "ten encodings s", "cost", "CLIP_benchmark s", "faster", "difference"),
    )
    for tower, count in (part.split("=") for part in arguments.images.split(",")):
        times, difference = measure(tower, int(count), arguments)
        parts = [a + b for a, b in zip(times["decoding"], times["encoding"], strict=True)]
        cost, faster = ratio(times["sweep"], parts), ratio(times["CLIP_benchmark"], times["sweep"])
        sweep, decoding, encoding, ten_runs = map(statistics.median, times.values())
        table.add(tower, count, sweep, decoding, encoding, f"{cost:.3f}", ten_runs, f"{faster:.2f} x", f"{difference:.4f}")
        record.goal(f"{tower}: sweep / (one decoding + ten encodings)", cost, at_most=1.1)
        if tower == "small":
            record.goal(f"{tower}: CLIP_benchmark's ten runs / sweep", faster, at_least=4)
    record.finish(arguments)


if __name__ == "__main__":
    main()
