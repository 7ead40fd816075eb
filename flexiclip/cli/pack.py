"""`flexiclip data pack`: shards from a table, a folder of images, a saved data set, or other shards."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from flexiclip.cli.parser import Parser, add_command, positive
from flexiclip.errors import UserError, counted
from flexiclip.files import size_text

if TYPE_CHECKING:
    from flexiclip.data.pack_shards import Job, Tally


def add_pack(data: argparse._SubParsersAction[Parser]) -> None:
    """Add `pack` to the commands of `data`."""
    sub = add_command(data, "pack", _pack, "write shards from a table, a folder of images, a saved data set, or other shards")
    sub.add_argument(
        "source",
        help="a .csv, .tsv, .parquet or .arrow file, or a folder: of class folders of images, of Parquet files, of tar shards "
        "(img2dataset), or saved by Hugging Face datasets",
    )
    sub.add_argument("--output", type=Path, required=True, help="folder in which train-00000.tar and so on are written")
    sub.add_argument(
        "--image-size", type=positive, help="scale images down until their short side has this many pixels; default: keep them"
    )
    sub.add_argument("--format", choices=("jpg", "png", "webp"), help="write images in this format; default: keep theirs")
    sub.add_argument(
        "--quality",
        type=_percent,
        default=95,
        help="quality of the JPEG and WebP images that are encoded again, 1 to 100; default: 95",
    )
    sub.add_argument("--image-column", help="column of a table that holds images or their paths; default: guessed, and printed")
    sub.add_argument("--caption-column", help="column of a table that holds captions; default: guessed, and printed")
    sub.add_argument("--no-captions", action="store_true", help="read no captions from a table")
    sub.add_argument("--root", help="folder to which the paths in a table are relative; default: the folder of the table")
    sub.add_argument("--split", help="split to take from a data set of several")
    sub.add_argument(
        "--template",
        action="append",
        default=[],
        help="caption of the images in a class folder, such as 'a photo of a {c}'; may be repeated; default: no captions",
    )
    sub.add_argument("--shard-size", type=positive, default=2000, help="rows per shard; default: 2000")
    sub.add_argument("--processes", type=positive, help="processes that write shards; default: one per core")


def _percent(text: str) -> int:
    if positive(text) > 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 100")
    return int(text)


def _pack(arguments: argparse.Namespace) -> None:
    from flexiclip.data.pack import pack
    from flexiclip.data.pack_images import ImageOptions
    from flexiclip.data.pack_open import open_source
    from flexiclip.data.pack_shards import Job
    from flexiclip.data.pack_tables import TableOptions

    if arguments.no_captions and arguments.caption_column:
        raise UserError("--no-captions and --caption-column exclude each other: give one of them")
    caption = "" if arguments.no_captions else arguments.caption_column
    table = TableOptions(arguments.image_column, caption, arguments.root, arguments.split)
    source = open_source(arguments.source, table, arguments.template)
    for note in source.notes:
        print(f"{arguments.source}: {note}", flush=True)
    images = ImageOptions(arguments.image_size, arguments.format, arguments.quality)
    job = Job(source, arguments.output, images, arguments.shard_size)
    tally, fresh = pack(job, arguments.processes or os.cpu_count() or 1, arguments.source)
    print("\n".join(_report(job, tally, fresh)))


def _report(job: Job, tally: Tally, fresh: bool) -> list[str]:
    """Return the lines that the command ends with: the totals, the bad rows, and how to use the shards."""
    held, kinds = "holds" if fresh else "already held", ", ".join(sorted(tally.extensions))
    samples, shards_said = counted(tally.samples, "sample"), counted(job.shards, "shard")
    lines = [f"{job.output} {held} {samples} ({kinds}) in {shards_said}, {size_text(tally.bytes)}"]
    if tally.bad:
        lines.append(f"{counted(len(tally.bad), 'bad row')}, in {job.output / 'bad_rows.jsonl'}: {tally.reasons()}")
    shards, source = f"{job.output}/train-*.tar", job.source
    check = [f"flexiclip data check '{shards}'"]
    recipe = [f"data.train={shards}"]
    if source.captions != "txt":
        check.append(f"--captions {source.captions or chr(34) * 2}")
        recipe += [f"data.captions={source.captions}"] if source.captions else []
    if unusual := sorted(set(tally.extensions) - {"jpg", "jpeg", "png", "webp"}):
        every = ",".join(["jpg", "png", "webp", *unusual])
        check.append(f"--images {every}")
        recipe.append(f"data.image_keys=[{every}]")
    if source.labels:
        names = [f"model.classes={job.output / 'classnames.txt'}"] if source.classes else []
        recipe += [f"data.labels={source.labels}", *names] if not source.captions else []
    return [*lines, f"check them   {' '.join(check)}", f"in a recipe  {' '.join(recipe)}"]
