"""Writes one shard of a pack: what each process of `flexiclip data pack` does, and what is known about the shard afterwards."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from flexiclip.data.images import ImageError
from flexiclip.data.pack_images import KEEP, ImageOptions, prepare_image
from flexiclip.data.pack_rows import BadRow, Row, Source
from flexiclip.data.shard_writer import ShardWriter
from flexiclip.errors import one_line
from flexiclip.files import clear_left, write_whole

SHARD_SIZE = 2000
STATE = ".pack"
"""The folder in the output that holds the records of the shards until the end."""

_LARGEST = 2**28  # bytes of an image file
_SHOWN_EVERY = 32  # rows between two reports of progress


@dataclass
class Tally:
    """What a shard, or the whole pack, holds."""

    samples: int = 0
    bytes: int = 0
    extensions: dict[str, int] = field(default_factory=dict)  # of images -> number of samples
    bad: list[dict[str, object]] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Add what another shard holds."""
        self.samples, self.bytes = self.samples + other.samples, self.bytes + other.bytes
        self.extensions = dict(Counter(self.extensions) + Counter(other.extensions))
        self.bad += other.bad

    def reasons(self) -> str:
        """Return the most frequent reasons of bad rows, with their numbers."""
        kinds = Counter(str(row["reason"]).split(":")[0] for row in self.bad)
        return "; ".join(f"{count:,} x {kind}" for kind, count in kinds.most_common(3))


@dataclass(frozen=True)
class Job:
    """Everything that a process needs to write any shard."""

    source: Source
    output: Path
    images: ImageOptions = KEEP
    shard_size: int = SHARD_SIZE

    @property
    def shards(self) -> int:
        """The number of shards that the rows are divided into. A shard whose rows are all bad has no file."""
        return -(-len(self.source) // self.shard_size)

    def path(self, shard: int) -> Path:
        """Return the file of a shard."""
        return self.output / f"train-{shard:05d}.tar"

    def record(self, shard: int) -> Path:
        """Return the file that holds the tally of a shard until the end."""
        return self.output / STATE / f"{shard:05d}.json"

    def rows_of(self, shard: int) -> range:
        """Return the rows of a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, len(self.source)))

    def finished(self, shard: int) -> Tally | None:
        """Return the tally of a shard that is complete, else None. Its record is older than its file, so a file is not enough."""
        try:
            tally = Tally(**json.loads(self.record(shard).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None
        path = self.path(shard)
        return tally if not tally.samples or (path.is_file() and path.stat().st_size == tally.bytes) else None


def write_shard(job: Job, shard: int) -> Iterator[int]:
    """Write one shard, and yield the number of rows that were done since the last time."""
    tally, rows = Tally(), job.rows_of(shard)
    clear_left(job.output, job.path(shard).name)
    with ShardWriter(job.path(shard)) as writer:
        done = 0
        for number, row in zip(rows, job.source.rows(rows.start, rows.stop), strict=True):
            sample = _sample(row, job.images)
            if isinstance(sample, BadRow):
                tally.bad.append(named(number, sample))
            else:
                extension, members = sample
                writer.write(f"{number:09d}", members)
                tally.extensions[extension] = tally.extensions.get(extension, 0) + 1
            done += 1
            if done == _SHOWN_EVERY:
                yield done
                done = 0
        tally.samples, tally.bytes = writer.samples, writer.final_bytes
        write_whole(job.record(shard), json.dumps(asdict(tally)))
        if not tally.samples:
            writer.discard()
    yield done


def _sample(row: Row | BadRow, options: ImageOptions) -> tuple[str, dict[str, bytes]] | BadRow:
    """Return (extension of the image, members) of a row's sample, the image first."""
    if isinstance(row, BadRow):
        return row
    try:
        data = row.image if isinstance(row.image, bytes) else _read(row.image)
        extension, image = prepare_image(data, options)
    except ImageError as error:
        return BadRow(row.where, f"image cannot be decoded: {error}")
    except OSError as error:
        return BadRow(row.where, f"image cannot be read: {error.strerror or error}")
    return extension, {extension: image, **row.members}


def named(row: int | None, bad: BadRow) -> dict[str, object]:
    """Return a line of bad_rows.jsonl. `row`: None for a part of the source that has no rows."""
    return {"row": row, "source": one_line(bad.where), "reason": one_line(bad.reason)}


def _read(path: str) -> bytes:
    """Return the content of a file. `open` would take as long again as the system needs for a small file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        if size > _LARGEST:
            raise ImageError(f"more than {_LARGEST} bytes")
        data = os.read(descriptor, size)
        while len(data) < size and (more := os.read(descriptor, size - len(data))):  # some network disks return less at a time
            data += more
        return data
    finally:
        os.close(descriptor)
