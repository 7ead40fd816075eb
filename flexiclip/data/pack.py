"""Writes shards from the rows of a source: `flexiclip data pack SOURCE --output DIR`.

    DIR/train-00000.tar ...      the samples: KEY.jpg, KEY.txt, KEY.json; KEY is the number of the row, counted from 0
    DIR/bad_rows.jsonl           row, source and reason of every row that could not become a sample
    DIR/classnames.txt           the classes, if the source has any
    DIR/dataset.json             the source, the options and the totals; it is written last
    DIR/.pack/                   what is known about the shards so far; removed at the end

Shard k holds the rows k*N to k*N + N - 1, without the bad ones. So each shard can be written by any process at any time,
with the same bytes. A shard gets its name when it is complete, after its bad rows are on the disk. After a kill the same command
writes the shards that are missing, and nothing twice.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from flexiclip.data.images import ImageError
from flexiclip.data.pack_images import KEEP, ImageOptions, prepare_image
from flexiclip.data.pack_rows import BadRow, Row, Source
from flexiclip.data.shard_writer import ShardWriter
from flexiclip.errors import UserError, one_line
from flexiclip.files import clear_left, read_json, write_whole, writing
from flexiclip.progress import watch

SHARD_SIZE = 2000
_STATE, _PLAN, _RESULT, _BAD = ".pack", "plan.json", "dataset.json", "bad_rows.jsonl"
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
        return self.output / _STATE / f"{shard:05d}.json"

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
                tally.bad.append(_named(number, sample))
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


def _named(row: int | None, bad: BadRow) -> dict[str, object]:
    """Return a line of bad_rows.jsonl. `row`: None for a part of the source that has no rows."""
    return {"row": row, "source": one_line(bad.where), "reason": one_line(bad.reason)}


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _LARGEST:
            raise ImageError(f"more than {_LARGEST} bytes")
        return file.read()


def pack(job: Job, processes: int, title: str) -> tuple[Tally, bool]:
    """Write the shards that are missing, and return (what all of them hold, whether anything was left to do).

    `title`: the source, as progress is shown with it. Raises UserError if the folder holds something else or cannot be
    written, or if no row became a sample, and RunError if a process was killed.
    """
    from flexiclip.data.pack_processes import in_processes

    done = _already_packed(job)
    if done is not None:
        return done, False
    with writing(f"--output {job.output}"), _claimed(job):
        missing = [shard for shard in range(job.shards) if job.finished(shard) is None]
        rows = sum(len(job.rows_of(shard)) for shard in missing)
        steps = _in_turn(job, missing) if min(processes, len(missing)) <= 1 else in_processes(job, missing, processes)
        for _ in watch(f"packing {title}")((range(done) for done in steps), rows):
            pass
        return _finish(job), True


def _in_turn(job: Job, shards: Iterable[int]) -> Iterator[int]:
    for shard in shards:
        yield from write_shard(job, shard)


def plan_of(job: Job) -> dict[str, object]:
    """Return what decides about the bytes of the shards, as plain values."""
    plan = {"version": 1, "source": job.source.identity, "rows": len(job.source), "shard_size": job.shard_size}
    found: dict[str, object] = json.loads(json.dumps({**plan, "images": asdict(job.images)}))
    return found


def _already_packed(job: Job) -> Tally | None:
    """Return what a folder holds that an earlier call completed with the same source and options, else None."""
    if not (job.output / _RESULT).is_file():
        return None
    about = read_json(job.output / _RESULT)
    _require_same(job, about)
    if (job.output / _STATE).is_dir():  # the call that completed it was killed at its very end
        _remove_state(job.output / _STATE)
    bad = (job.output / _BAD).read_text(encoding="utf-8").splitlines()
    counts = {name: about[name] for name in ("samples", "bytes", "extensions")}
    return Tally(**counts, bad=[json.loads(line) for line in bad])  # type: ignore[arg-type]


@contextmanager
def _claimed(job: Job) -> Iterator[None]:
    """Make the folder, or check that it belongs to this pack, and keep other processes out. Raises UserError."""
    state = job.output / _STATE
    if not (state / _PLAN).is_file() and any(job.output.glob("train-*.tar")):
        raise UserError(f"--output {job.output}: it holds shards that this command did not write; name another folder")
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--output {job.output}: another `flexiclip data pack` is writing there") from None
        if (state / _PLAN).is_file():
            _require_same(job, read_json(state / _PLAN))
        else:
            write_whole(state / _PLAN, json.dumps(plan_of(job)))
        yield


def _require_same(job: Job, earlier: dict[str, object]) -> None:
    plan = plan_of(job)
    changed = [name for name in plan if earlier.get(name) != plan[name]]
    if changed:
        what = "the source has changed" if changed[0] in ("source", "rows") else f"other options ({', '.join(changed)})"
        raise UserError(f"--output {job.output}: it was packed from other rows: {what}; name another folder, or remove this one")


def _finish(job: Job) -> Tally:
    """Write the files that describe the whole folder, and remove the records of the shards."""
    total = Tally(bad=[_named(None, damage) for damage in job.source.damage])
    for shard in range(job.shards):
        tally = job.finished(shard)
        assert tally is not None, f"shard {shard} is not complete"
        total.add(tally)
    if not total.samples:
        raise UserError(f"no row could become a sample: {total.reasons()}; the first: {total.bad[0]['reason']}")
    write_whole(job.output / _BAD, "".join(json.dumps(row) + "\n" for row in total.bad))
    if job.source.classes:
        write_whole(job.output / "classnames.txt", "".join(f"{name}\n" for name in job.source.classes))
    counts = {"samples": total.samples, "bad": len(total.bad), "bytes": total.bytes, "extensions": total.extensions}
    write_whole(job.output / _RESULT, json.dumps({**plan_of(job), **counts}, indent=2) + "\n")
    _remove_state(job.output / _STATE)
    return total


def _remove_state(state: Path) -> None:
    """Remove the records. The plan goes last, because without it the shards would look like somebody else's."""
    for path in state.iterdir():
        if path.name != _PLAN:
            path.unlink()
    (state / _PLAN).unlink(missing_ok=True)
    state.rmdir()
