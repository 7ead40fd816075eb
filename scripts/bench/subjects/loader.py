"""Compare the speed of flexiclip's loader with open_clip's webdataset pipeline, on the same work for each image.

    python -m scripts.bench.subjects.loader                               two sizes, 0, 1 and 2 workers (ten minutes)
    python -m scripts.bench.subjects.loader --sizes 640x480 --workers 0
    python -m scripts.bench.subjects.loader --quick                       few images, 200 shards (a minute or two)

Both read JPEGs and captions from shards that webdataset wrote, take a random crop of 0.9 to 1 of the area (open_clip's default),
resize it to 240 px (bicubic, antialiased), and tokenize with CLIP's byte pairs at length 77. open_clip's side is get_wds_dataset
of its training package with its own image_transform. Its shuffle buffer has 64 samples instead of 5,000, so that the time to fill
it is not counted. Each measurement runs in a process of its own, and leaves out the first batches.

Images per core are images per second of processor time of the trainer and its workers, which other programs on the machine hardly
change. Before the measurement, whole images of both sides are compared (`difference`).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from scripts.bench.measure import measure_apart, ratio
from scripts.bench.record import Record, options
from scripts.bench.samples import pairs, write_links, write_shard

SIDE, CONTEXT, BATCH = 240, 77, 32
CROP = (0.9, 1.0)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # open_clip's
SIDES = ("flexiclip", "open_clip")
FIRST_BATCH_S = 5.0
SKIPPED = 3  # batches before the clock starts
SHUFFLED = 64  # samples in open_clip's buffer
CAPTION = (
    "photo {} of an old red brick house on a hill in the late light of summer, with a cart and two dogs before its open door"
)
ABOUT = (
    "This subject times the way from shards of JPEGs and captions to batches, and compares it with open_clip's own "
    "webdataset pipeline with the same crops, size and tokenizer. Speeds are given in images per second of wall-clock "
    "time, and in images per second of processor time over all processes (per core)."
)


class Size(NamedTuple):
    """Photographs of one size: the goal for the ratio of speeds, and how much is read to measure it."""

    goal: float
    batches: int
    samples: int  # per shard
    apart: float  # allowed difference of whole images in levels of 255, for rounding and for DCT-scaled decoding


SIZES = {"640x480": Size(1.5, 32, 256, 1.0), "2000x1500": Size(2.5, 16, 64, 3.0)}


class Task(NamedTuple):
    """The work that one process measures."""

    side: str
    shards: str
    workers: int
    batches: int
    scale: tuple[float, float] = CROP


def flexiclip_batches(task: Task) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (images uint8 [32, 3, 240, 240], tokens) as the trainer gets them. It normalizes images on the model's device."""
    from flexiclip.config import DataConfig, TokenizerConfig
    from flexiclip.data.batch import BatchSpec, RankSteps
    from flexiclip.data.loader import train_loader
    from flexiclip.data.tokenizers.foreign import ClipTokenizer

    settings = TokenizerConfig(kind="clip", context_length=CONTEXT)
    batches = train_loader(
        DataConfig(train=task.shards, workers=task.workers, crop_scale=task.scale),
        BatchSpec((SIDE, SIDE), "bicubic", ClipTokenizer(settings, ClipTokenizer.collect(settings))),
        RankSteps(seed=0, global_batch_size=BATCH, start_step=0, steps=10**6),
    )
    return ((batch.images, batch.tokens) for batch in batches)


def open_clip_batches(task: Task) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (normalized images float32 [32, 3, 240, 240], tokens) as open_clip's trainer gets them."""
    import open_clip_train.data as theirs
    from open_clip import SimpleTokenizer, image_transform
    from webdataset.tariterators import tar_file_expander

    # webdataset 1.0 marks the end of a shard with an empty sample, which open_clip 3.3's grouping does not support.
    theirs.tar_file_expander = functools.partial(tar_file_expander, eof_value=None)
    if task.batches:
        theirs._SAMPLE_SHUFFLE_SIZE = theirs._SAMPLE_SHUFFLE_INITIAL = SHUFFLED
    given = Namespace(train_data=task.shards, dataset_resampled=True, train_num_samples=2**30, train_data_upsampling_factors=None)
    given.batch_size, given.workers, given.world_size, given.seed = BATCH, task.workers, 1, 0
    transform = image_transform(SIDE, is_train=True, mean=MEAN, std=STD, aug_cfg={"scale": task.scale})
    loader = theirs.get_wds_dataset(given, transform, is_train=True, tokenizer=SimpleTokenizer(context_length=CONTEXT)).dataloader
    return iter(loader)


BATCHES: dict[str, Callable[[Task], Iterator[tuple[torch.Tensor, torch.Tensor]]]] = {
    "flexiclip": flexiclip_batches,
    "open_clip": open_clip_batches,
}


def measure(task: Task) -> dict[str, float]:
    """Measure one task in this process.

    Returns `first`, the seconds to the first batch without imports, and `wall` and `core`, the wall-clock and processor seconds
    of task.batches later batches.
    """
    torch.set_num_threads(1)
    import open_clip_train.data  # noqa: F401 (imported first, so that imports are not measured)

    import flexiclip.data.tokenizers.foreign  # noqa: F401

    start = time.perf_counter()
    batches = BATCHES[task.side](task)
    next(batches)
    first = time.perf_counter() - start
    for _ in itertools.islice(batches, SKIPPED if task.batches else 0):
        pass
    start, core = time.perf_counter(), processor_seconds()
    for _ in itertools.islice(batches, task.batches):
        pass
    return {"first": first, "wall": time.perf_counter() - start, "core": processor_seconds() - core}


def processor_seconds() -> float:
    """Return the processor seconds of this process and its workers so far (Linux only)."""
    spent = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        spent += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return spent


def in_turn(tasks: Sequence[Task], rounds: int) -> list[list[dict[str, Any]]]:
    """Call measure() for each task in fresh processes, in turn (A B A B). Returns the results of all rounds of each task."""
    found: list[list[dict[str, Any]]] = [[] for _ in tasks]
    for _ in range(rounds):
        for task, runs in zip(tasks, found, strict=True):
            runs.append(
                measure_apart(
                    "scripts.bench.subjects.loader", {"measure": json.dumps(task)}, environment={"OMP_NUM_THREADS": "1"}
                )
            )
    return found


def write_photographs(folder: Path, size: str, distinct: int, samples: int) -> str:
    """Write two shards of `samples` photographs each, which repeat `distinct` different ones. Returns their brace pattern."""
    width, height = map(int, size.split("x"))
    drawn = list(pairs(distinct, width, height, [CAPTION.format(number) for number in range(distinct)]))
    for number in range(2):
        write_shard(folder / f"{size}-{number}.tar", list(itertools.islice(itertools.cycle(drawn), samples)))
    return str(folder / f"{size}-{{0..1}}.tar")


def difference(shards: str) -> float:
    """Return the median over images of the mean difference between both sides' whole images, in levels of 255.

    The captions must agree exactly.
    """
    shown: dict[str, dict[bytes, torch.Tensor]] = {}
    for side, batches in BATCHES.items():
        shown[side] = {}
        for images, tokens in itertools.islice(batches(Task(side, shards, 0, 1, (1.0, 1.0))), 4):
            shown[side] |= {row.numpy().tobytes(): image for row, image in zip(tokens.long(), images, strict=True)}
    ours, theirs = shown.values()
    assert ours.keys() == theirs.keys(), "the two sides do not show the same captions"
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    apart = [float((ours[key].float() - (theirs[key] * std + mean) * 255).abs().mean()) for key in ours]
    return statistics.median(apart)


def throughput(record: Record, arguments: argparse.Namespace, folder: Path) -> None:
    """Measure the images/s of both sides at each size and number of workers."""
    table = record.table(
        f"batches of {BATCH}, crops of {CROP[0]:g} to {CROP[1]:g} of the area to {SIDE} px",
        *("JPEGs", "workers", "images/s", "open_clip", "ratio", "images/s per core", "open_clip per core", "ratio per core"),
    )
    for size in arguments.sizes:
        found = SIZES[size]
        shards = write_photographs(folder, size, 8 if arguments.quick else 32, found.samples)
        apart = difference(shards)
        assert apart < found.apart, f"{size}: whole images of the two sides differ by {apart:.2f} levels in the mean"
        record.notes.append(f"Whole images of {size} differ between the two libraries by {apart:.2f} levels of 255 on average.")
        batches = 4 if arguments.quick else found.batches
        for workers in arguments.workers:
            ours, theirs = in_turn([Task(side, shards, workers, batches) for side in SIDES], arguments.rounds)
            cells, gains = [], []
            for clock in ("wall", "core"):
                spent = [[run[clock] for run in runs] for runs in (ours, theirs)]
                gains.append(ratio(spent[1], spent[0]))
                cells += [f"{batches * BATCH / statistics.median(each):.0f}" for each in spent] + [f"{gains[-1]:.2f}"]
            table.add(size, workers, *cells)
            record.goal(f"images/s per core, {size}, {workers} workers, over open_clip's", gains[1], at_least=found.goal)


def first_batch(record: Record, arguments: argparse.Namespace, folder: Path) -> None:
    """Measure the seconds from the call to the first batch, with very many small shards."""
    count = 200 if arguments.quick else 10_000
    write_links(folder, count, 16)
    shards = str(folder / f"small-{{00000..{count - 1:05d}}}.tar")
    table = record.table(f"first batch of {count:,} shards, 2 workers", "side", "seconds")
    fresh, cached = in_turn([Task("flexiclip", shards, 2, 0)] * 2, 1)
    (theirs,) = in_turn([Task("open_clip", shards, 2, 0)], 1)
    for what, runs in (("flexiclip, headers read", fresh), ("flexiclip, index cached", cached), ("open_clip", theirs)):
        table.add(what, runs[0]["first"])
    record.goal(f"first batch of {count:,} shards, index cached, s", cached[0]["first"], at_most=FIRST_BATCH_S)
    record.goal(f"first batch of {count:,} small shards, headers read, s", fresh[0]["first"], at_most=FIRST_BATCH_S)
    record.notes.append(
        "The headers of a shard are read only once, by one process. `flexiclip data index` does this ahead of a run."
    )


def stages(record: Record, folder: Path, sizes: Sequence[str]) -> None:
    """Measure how the time of flexiclip's images is divided between decoding and cropping."""

    from flexiclip.data.images import TrainTransform, decode_image
    from flexiclip.draws import Stream

    torch.set_num_threads(1)
    transform, stream = TrainTransform((SIDE, SIDE), CROP, (3 / 4, 4 / 3), False, "bicubic"), Stream(0)
    table = record.table("ms of processor time per image", "JPEGs", "decode whole", "decode as training does", "crop and resize")
    for size in sizes:
        width, height = map(int, size.split("x"))
        jpegs = [pair.jpeg for pair in pairs(4, width, height, [""])]
        images = [decode_image(jpeg, transform.min_side) for jpeg in jpegs]
        works = (
            lambda jpegs=jpegs: [decode_image(jpeg) for jpeg in jpegs],
            lambda jpegs=jpegs: [decode_image(jpeg, transform.min_side) for jpeg in jpegs],
            lambda images=images: [transform(image, stream) for image in images],
        )
        table.add(size, *(1e3 * core_seconds(work) / len(jpegs) for work in works))


def core_seconds(work: Callable[[], object]) -> float:
    """Return the processor seconds of one call, as the median of five."""
    found = []
    for _ in range(5):
        start = time.thread_time()
        work()
        found.append(time.thread_time() - start)
    return statistics.median(found)


def main() -> None:
    """Compare the images, then the speeds."""
    parser = options(__doc__, rounds=3)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(Task(*arguments.measure))))
        return
    if arguments.quick:
        arguments.rounds, arguments.workers, arguments.sizes = 1, [0, 2], arguments.sizes[:1]
    record = Record("loader", ABOUT)
    with TemporaryDirectory() as name:
        throughput(record, arguments, Path(name))
        first_batch(record, arguments, Path(name))
        stages(record, Path(name), arguments.sizes)
    record.finish(arguments)


if __name__ == "__main__":
    main()
