"""Compare `flexiclip data pack` with webdataset's ShardWriter and Pillow, on the same table of images and captions.

    python -m scripts.bench.subjects.pack             2,000 images of each size (ten minutes)
    python -m scripts.bench.subjects.pack --quick     few images

Both read a CSV of paths and captions, and write shards with jpg, txt and json. Some jobs copy the images. The others scale the
short side down and encode JPEGs of quality 95. The other side is a plain loop: csv.DictReader, Image.open, convert, resize
(bicubic), save into memory, and ShardWriter.write of bytes. Each measurement is a process of its own with one thread that writes
all shards. Images per core are images per second of the processor time of that process, without its imports. Before the
measurement, the samples of both sides are compared.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import statistics
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from PIL import Image

from scripts.bench.measure import measure_apart, ratio
from scripts.bench.record import Record, options
from scripts.bench.samples import long_captions, pairs

GOAL, QUALITY, SHARD = 1.5, 95, 1000
DISTINCT = 16  # photographs that a table repeats under other names
SIDES = ("flexiclip", "webdataset")
ABOUT = (
    "This subject times how long it takes to write shards from a table of images and captions: `flexiclip data pack`, and a loop "
    "with webdataset's ShardWriter and Pillow. Speeds are given in images per second of processor time (per core)."
)


class Work(NamedTuple):
    """A job: the size of the JPEGs, the short side that they are scaled to (0: copied), and how many there are."""

    size: str
    side: int
    images: int
    goal: bool  # whether the goal holds for it

    @property
    def name(self) -> str:
        """The job in words."""
        return f"{self.size}, {f'scaled to {self.side}' if self.side else 'copied'}"


WORKS = (
    Work("256x256", 0, 2000, True),
    Work("640x480", 0, 2000, True),
    Work("640x480", 224, 500, True),
    Work("640x480", 256, 500, False),
    Work("1024x768", 256, 300, True),
    Work("2000x1500", 256, 120, True),
)


def pack_ours(table: Path, output: Path, side: int) -> None:
    """Write the shards as `flexiclip data pack --processes 1` does."""
    from flexiclip.data.pack import pack
    from flexiclip.data.pack_images import ImageOptions
    from flexiclip.data.pack_open import open_source
    from flexiclip.data.pack_shards import Job

    pack(Job(open_source(str(table)), output, ImageOptions(side or None, None, QUALITY), SHARD), 1, "")


def pack_theirs(table: Path, output: Path, side: int) -> None:
    """Write the shards with webdataset and Pillow."""
    from webdataset import ShardWriter

    output.mkdir()
    with table.open(newline="") as file, ShardWriter(str(output / "train-%05d.tar"), maxcount=SHARD, verbose=0) as writer:
        for number, row in enumerate(csv.DictReader(file)):
            path = table.parent / row["filepath"]
            data = _scaled(path, side) if side else path.read_bytes()
            facts = {"filepath": row["filepath"]}
            writer.write({"__key__": f"{number:09d}", "jpg": data, "txt": row["title"], "json": facts})


def _scaled(path: Path, side: int) -> bytes:
    image = Image.open(path).convert("RGB")
    scale = side / min(image.size)
    if scale < 1:
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


PACK: dict[str, Callable[[Path, Path, int], None]] = {"flexiclip": pack_ours, "webdataset": pack_theirs}


def measure(side: str, table: str, short: int) -> dict[str, float]:
    """Measure one side in this process: `core`, the processor seconds."""
    import torch
    import webdataset  # noqa: F401 (imported first, so that imports are not measured)

    import flexiclip.data.pack
    import flexiclip.data.pack_open  # noqa: F401

    torch.set_num_threads(1)
    Image.init()  # imports Pillow's formats
    with TemporaryDirectory(dir=Path(table).parent) as folder:
        start = time.process_time()
        PACK[side](Path(table), Path(folder) / "shards", short)
        return {"core": time.process_time() - start}


def write_table(folder: Path, work: Work, images: int) -> Path:
    """Write JPEGs and a table of them. Returns the path of the table."""
    folder.mkdir(exist_ok=True)
    width, height = map(int, work.size.split("x"))
    drawn = list(pairs(min(DISTINCT, images), width, height, [""]))
    for number, pair in zip(range(images), itertools.cycle(drawn), strict=False):
        (folder / f"{number}.jpg").write_bytes(pair.jpeg)
    table = folder / f"{images}.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filepath", "title"])
        writer.writerows((f"{number}.jpg", caption) for number, caption in enumerate(long_captions(images)))
    return table


def difference(table: Path, side: int) -> float:
    """Check that both sides write the same samples. Returns the mean difference of their pixels, in levels of 255."""
    with TemporaryDirectory(dir=table.parent) as folder:
        found = []
        for name, pack in PACK.items():
            pack(table, Path(folder) / name, side)
            members: dict[str, bytes] = {}
            for path in sorted((Path(folder) / name).glob("*.tar")):
                with tarfile.open(path) as tar:
                    members |= {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
            found.append(members)
    ours, theirs = found
    assert ours.keys() == theirs.keys(), "the two sides write different samples"
    apart = [0.0]
    for name, data in ours.items():
        if name.endswith(".json"):
            assert json.loads(data) == json.loads(theirs[name])
        elif name.endswith(".txt") or not side:
            assert data == theirs[name]
        else:
            pixels = [np.asarray(Image.open(io.BytesIO(each)), np.float64) for each in (data, theirs[name])]
            apart.append(float(np.abs(pixels[0] - pixels[1]).mean()))
    return statistics.mean(apart[1:]) if side else 0.0


def compare(record: Record, arguments: argparse.Namespace, folder: Path) -> None:
    """Compare the samples and the speeds of every job."""
    table = record.table(
        f"one process, shards of {SHARD} samples", "JPEGs", "images/s per core", "webdataset + Pillow", "ratio per core"
    )
    for work in WORKS[: 3 if arguments.quick else None]:
        images = work.images // 10 if arguments.quick else work.images
        apart = difference(write_table(folder / work.size, work, min(images, DISTINCT)), work.side)
        assert apart < 3, f"{work.name}: the images of the two sides differ by {apart:.2f} levels in the mean"
        if work.side:
            record.notes.append(f"{work.name}: the images of the two sides differ by {apart:.2f} levels of 255 on average.")
        written = write_table(folder / work.size, work, images)
        spent: dict[str, list[float]] = {side: [] for side in SIDES}
        for _, side in itertools.product(range(arguments.rounds), SIDES):
            call = {"measure": side, "table": written, "short": work.side}
            spent[side].append(measure_apart("scripts.bench.subjects.pack", call, environment={"OMP_NUM_THREADS": "1"})["core"])
        gain = ratio(spent["webdataset"], spent["flexiclip"])
        table.add(work.name, *(f"{images / statistics.median(spent[side]):.0f}" for side in SIDES), f"{gain:.2f}")
        if work.goal:
            record.goal(f"images/s per core, {work.name}, over webdataset's and Pillow's", gain, at_least=GOAL)
    record.notes.append(
        "640x480 to 256 is the hardest case: at a half of its size the JPEG would be too small, so both sides decode it whole."
    )


def main() -> None:
    """Compare the samples, then the speeds."""
    parser = options(__doc__, rounds=5)
    for option, kind in (("--measure", str), ("--table", str), ("--short", int)):
        parser.add_argument(option, type=kind, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.table, arguments.short)))
        return
    if arguments.quick:
        arguments.rounds = 1
    record = Record("pack", ABOUT)
    with TemporaryDirectory() as name:
        compare(record, arguments, Path(name))
    record.finish(arguments)


if __name__ == "__main__":
    main()
