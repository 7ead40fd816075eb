"""Everything that a run draws, computed over a set of plans: what frozen.json holds, and what test_frozen.py compares with it.

A run that is resumed, by another version of flexiclip or of numpy, must draw what it drew before. frozen.json was written by the
version before the draws were taken out of numpy's Generator, so it is what runs of that version drew:

    cd tests && python -m kit.freezing        # rewrites data/frozen.json: only where resumed runs are meant to change
"""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flexiclip.config import Config, DataConfig, SourceConfig, from_dict
from flexiclip.data.batch import BatchSpec, Mixup, RankSteps
from flexiclip.data.dataset import draw_view
from flexiclip.data.images import TrainTransform
from flexiclip.data.order import Plan, Source
from flexiclip.data.samples import Sample
from flexiclip.draws import Draw, below, permutation, stream
from flexiclip.schedules import Horizon, SeqhwSchedule

STORED = Path(__file__).parents[1] / "data" / "frozen.json"
SEEDS = (0, 1, 7, 2**32 - 1, 2**32, 2**63 + 5, 2**64 + 7)
FAR = (10**6, 10**9 + 7, 2**40)  # positions and steps of long runs

# name -> (samples of the shards of each source, weights, seed, window_shards)
PLANS: dict[str, tuple[list[list[int]], list[float], int, int]] = {
    "one source": ([[5, 5, 5, 5]], [1.0], 0, 2),
    "uneven shards": ([[1, 9, 2, 11, 0, 4]], [1.0], 3, 2),
    "one shard at a time": ([[3, 8, 5]], [1.0], 2**63 + 5, 1),
    "a window over all": ([[6, 1, 7, 2]], [1.0], 2**64 + 7, 16),
    "a seed of 32 bits and more": ([[4, 4, 4]], [1.0], 2**32 + 1, 2),
    "two alike": ([[4, 4, 4, 4], [4, 4, 4, 4]], [1.0, 1.0], 5, 2),
    "three to one": ([[7, 2, 9], [3, 3, 3, 3]], [3.0, 1.0], 1, 2),
    "three sources": ([[11, 3], [2, 5, 1, 8], [13]], [0.7, 0.2, 0.1], 42, 3),
    "awkward weights": ([[6, 6], [5], [9, 2]], [np.pi, np.e, 2**0.5], 9, 1),
}
WEIGHTS: list[list[float]] = [
    [1], [5.5], [1e-6], [1e9], [1, 1], [3, 1], [1, 2, 5], [0.7, 0.2, 0.1], [0.3, 0.3, 0.3], [1 / 3, 2 / 3], [0.1, 0.2, 0.3, 0.4],
    [np.pi, np.e, 2**0.5], [1, 4095], [1, 4096], [2, 8190], [1, 1000], [0.001, 0.999], [0.0005, 1], [1e-6, 3e-6], [1e-5, 7e-5],
    [1e-6, 1e-3], [1.5e-6, 2.5e-6], [123456, 654321], [1e9, 1e6], [1e6, 3e8], [17, 19, 23, 29], [0.05] * 20, list(range(1, 65)),
    [1e15, 3e15], [2.718281828, 3.141592653, 1.414213562, 1.732050808, 0.577215665], [1000, 999, 998], [1e-3, 1.1e-3, 1.3e-3],
]  # fmt: skip

LENGTHS = [3, 4, 6, 10]
PATCHES: dict[str, dict[str, Any]] = {
    "uniform": {},
    "a single length": {"seqhw": [8]},
    "ten lengths": {"seqhw": [5, 6, 8, 10, 12, 15, 16, 20, 24, 30]},
    "not in order": {"seqhw": [10, 3, 6, 4], "weights": [1, 2, 3, 4]},
    "twice the same": {"seqhw": [4, 4, 6], "weights": [1, 1, 2]},
    "inverse cost": {"weights": "inverse_cost"},
    "weights": {"weights": [1, 0, 2, 5]},
    "awkward weights": {"weights": [0.1, 0.7, 1 / 3, 1e-3]},
    "stages": {"stages": [{"start": "25%", "seqhw": [6, 10], "weights": [3, 1]}, {"start": 150, "seqhw": [3, 4, 6]}]},
    "stages out of order": {"stages": [{"start": "75%", "seqhw": [10]}, {"start": "1 epochs", "seqhw": [4, 6]}]},
    "short to long": {"curriculum": "short_to_long"},
    "short to long, narrow": {"curriculum": "short_to_long", "spread": 0.3, "weights": [5, 1, 0, 2]},
    "long to short": {"curriculum": "long_to_short", "weights": "inverse_cost"},
    "long to short, wide": {"curriculum": "long_to_short", "spread": 1.7},
    "clipa": {"curriculum": "clipa"},
    "clipa, weighted": {"curriculum": "clipa", "weights": [4, 3, 2, 1], "finish": "20%"},
}
STEPS = 200  # of the runs whose lengths are frozen

# name -> (image (width, height), output (H, W), crop_scale, crop_ratio, flip)
VIEWS: dict[str, tuple[tuple[int, int], tuple[int, int], tuple[float, float], tuple[float, float], bool]] = {
    "as by default": ((640, 480), (32, 32), (0.4, 1.0), (0.75, 4 / 3), False),
    "flipped": ((640, 480), (32, 32), (0.4, 1.0), (0.75, 4 / 3), True),
    "small crops of a wide output": ((500, 333), (16, 40), (0.05, 0.3), (0.5, 2.0), True),
    "a tall output": ((300, 700), (48, 20), (0.2, 0.9), (0.9, 1.1), True),
    "too narrow for any crop": ((500, 7), (24, 24), (0.9, 1.0), (0.9, 1.1), True),
    "nearly too narrow": ((100, 60), (24, 24), (0.5, 0.7), (0.9, 1.1), True),
    "the whole image": ((64, 48), (48, 64), (1.0, 1.0), (1.0, 1.0), True),
    "a single pixel": ((1, 1), (8, 8), (0.4, 1.0), (0.75, 4 / 3), True),
}
KEPT = (1e-3, 0.05, 0.2, 0.5, 0.999, 1.0, 1.001, 1.5, 2.0, 8.0, 100.0)  # p of mixup


def order(plan: Plan) -> list[list[int]]:
    """[epoch, source, window, shard, sample] of the first positions and of some that lie far."""
    places = [plan[position] for position in (*range(150), *FAR)]
    return [[p.epoch, p.source, p.window, p.shard, p.sample] for p in places]


def plan_of(name: str) -> Plan:
    counts, weights, seed, window = PLANS[name]
    return Plan([Source(np.array(c), w) for c, w in zip(counts, weights, strict=True)], seed, window)


def orders() -> dict[str, Any]:
    return {name: order(plan_of(name)) for name in PLANS}


def quotas() -> list[list[int]]:
    """Positions of a block that go to each source."""
    return [list(Plan([Source(np.array([1]), weight) for weight in weights], 0, 1).quotas) for weights in WEIGHTS]


def blocks() -> dict[str, Any]:
    """The sources of the first positions of some blocks."""
    found = {}
    for name, (counts, *_) in PLANS.items():
        plan, block = plan_of(name), sum(plan_of(name).quotas)
        if len(counts) > 1:
            found[name] = [[plan[b * block + i].source for i in range(80)] for b in (0, 1, 2, 1000)]
    return found


def schedule(name: str, seed: int) -> SeqhwSchedule:
    config = from_dict(Config, {"patch": {"seqhw": LENGTHS, **PATCHES[name]}}).patch
    return SeqhwSchedule(config, seed, Horizon(STEPS, 8, 640), lambda s: float(s * s))


def lengths() -> dict[str, Any]:
    found: dict[str, Any] = {name: list(map(schedule(name, 3), range(STEPS))) for name in PATCHES}
    for seed in SEEDS:
        found[f"seed {seed}"] = list(map(schedule("weights", seed), (*range(40), *FAR)))
    return found


def raw() -> dict[str, Any]:
    """The streams themselves, one number or one permutation of each purpose."""
    found: dict[str, Any] = {}
    for purpose in Draw:
        for seed in (*SEEDS, -1, -(2**40)):
            numbers = [below(count, seed, purpose, 1, 2, 3) for count in (2, 10**6, 2**63)]
            found[f"{purpose.name} {seed}"] = [*numbers, *permutation(9, seed, purpose, 4, 5).tolist()]
    return found


def dropout() -> list[int]:
    """torch's seeds: (seed, step, rank, micro-batch)."""
    places = [(step, rank, micro) for step in (0, 1, 10**6) for rank in (0, 1, 63) for micro in (0, 5)]
    return [below(1 << 63, seed, Draw.DROPOUT, *place) for seed in (0, 3) for place in places]


def substitutes() -> list[int]:
    """(source, epoch, sample, attempt) -> the sample that is taken instead, of 1000."""
    places = [(s, e, n, a) for s in (0, 2) for e in (0, 1, 9) for n in (0, 17) for a in (1, 2, 99)]
    return [below(1000, 3, Draw.SUBSTITUTE, *place) for place in places]


def views(name: str) -> list[list[int]]:
    """[caption, left, top, right, bottom, flipped] for some samples and epochs."""
    size, output, scale, ratio, flip = VIEWS[name]
    transform = TrainTransform(output, scale, ratio, flip, "bilinear")
    image = Image.linear_gradient("L").rotate(90).convert("RGB").resize(size)
    rows = []
    for place in [(source, epoch, number) for source in (0, 1) for epoch in (0, 3) for number in range(12)]:
        drawn = stream(3, Draw.AUGMENT, *place)
        item = draw_view(Sample("", "", image, tuple("abcdefg")), transform, drawn)
        again = stream(3, Draw.AUGMENT, *place)
        again.random()  # the caption
        columns = item.pixels[0].float().mean(0)
        rows.append(["abcdefg".index(item.caption), *transform.crop_box(*size, again), int(columns[0] < columns[-1])])
    return rows


def kept() -> dict[str, list[float]]:
    """What an image keeps of itself in mixup, step by step."""
    return {f"{p:g}": [Mixup(p, seed).kept(step) for seed in (0, 3) for step in range(40)] for p in KEPT}


def shard(path: Path, numbers: range) -> str:
    """Pictures whose grey levels tell where and which they are, with three captions each, drawn by nothing but arithmetic."""
    import webdataset

    with webdataset.TarWriter(str(path), encoder=False, mtime=0) as writer:
        for number in numbers:
            y, x = np.mgrid[:40, :48]
            pixels = np.stack([5 * x, 6 * y, 0 * x + 10 * number], axis=-1).astype(np.uint8)
            Image.fromarray(pixels).save(buffer := io.BytesIO(), "PNG")
            captions = json.dumps({"c": [f"{number} {word}" for word in ("one", "two", "three")]}).encode()
            image = buffer.getvalue() if number % 7 else buffer.getvalue()[:80]  # every seventh is bad, and replaced
            writer.write({"__key__": f"s{number:02d}", "png": image, "json": captions})
    return str(path)


def batches(sequential: bool = False, mixup: float = 0.3) -> list[Any]:
    """[sample, caption, mean red, green and blue] of what two steps of a whole loader give, over two sources."""
    from flexiclip.data.loader import train_loader

    with tempfile.TemporaryDirectory() as folder:
        first = shard(Path(folder) / "a-0.tar", range(1, 8)), shard(Path(folder) / "a-1.tar", range(8, 12))
        train = (SourceConfig(first, 3.0), SourceConfig(shard(Path(folder) / "b.tar", range(12, 18)), 1.0))
        config = DataConfig(
            train=train, captions=("json:c",), workers=0, window_shards=1, flip=True, mixup=mixup, sequential=sequential
        )
        steps = RankSteps(seed=11, global_batch_size=24, start_step=2, steps=2)
        loader = train_loader(config, BatchSpec((24, 16), "bicubic"), steps)
        rows = []
        for batch in loader:
            means = batch.images.float().mean((2, 3)).round().int().tolist()
            bad = [error["key"] for error in batch.bad]
            rows.append([batch.samples, batch.captions, means, bad])
        return rows


def everything() -> dict[str, Any]:
    return {
        "orders": orders(),
        "quotas": quotas(),
        "blocks": blocks(),
        "lengths": lengths(),
        "raw": raw(),
        "dropout": dropout(),
        "substitutes": substitutes(),
        "views": {name: views(name) for name in VIEWS},
        "kept": kept(),
        "batches": batches(),
        "sequential": batches(sequential=True, mixup=0.0),
    }


if __name__ == "__main__":
    tables = [f'"{name}": {json.dumps(table, separators=(",", ":"))}' for name, table in everything().items()]
    STORED.write_text("{\n" + ",\n".join(tables) + "\n}\n", encoding="utf-8")
