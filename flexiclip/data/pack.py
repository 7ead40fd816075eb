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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from flexiclip.data.pack_processes import in_processes
from flexiclip.data.pack_shards import STATE, Job, Tally, named, write_shard
from flexiclip.errors import UserError
from flexiclip.files import read_json, write_whole, writing
from flexiclip.progress import Watch, watch

_PLAN, _RESULT, _BAD = "plan.json", "dataset.json", "bad_rows.jsonl"


def pack(job: Job, processes: int, title: str) -> tuple[Tally, bool]:
    """Write the shards that are missing, and return (what all of them hold, whether anything was left to do).

    `title`: the source, as progress is shown with it. Raises UserError if the folder holds something else or cannot be
    written, or if no row became a sample, and RunError if a process was killed.
    """
    done = _already_packed(job)
    if done is not None:
        return done, False
    with writing(f"--output {job.output}"), _claimed(job):
        missing = [shard for shard in range(job.shards) if job.finished(shard) is None]
        rows = sum(len(job.rows_of(shard)) for shard in missing)
        steps = _in_turn(job, missing) if min(processes, len(missing)) <= 1 else in_processes(job, missing, processes)
        show: Watch[range] = watch(f"packing {title}")
        for _ in show((range(step) for step in steps), rows):
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
    if (job.output / STATE).is_dir():  # the call that completed it was killed at its very end
        _remove_state(job.output / STATE)
    bad = (job.output / _BAD).read_text(encoding="utf-8").splitlines()
    counts = {name: about[name] for name in ("samples", "bytes", "extensions")}
    return Tally(**counts, bad=[json.loads(line) for line in bad])  # type: ignore[arg-type]


@contextmanager
def _claimed(job: Job) -> Iterator[None]:
    """Make the folder, or check that it belongs to this pack, and keep other processes out. Raises UserError."""
    state = job.output / STATE
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
    total = Tally(bad=[named(None, damage) for damage in job.source.damage])
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
    _remove_state(job.output / STATE)
    return total


def _remove_state(state: Path) -> None:
    """Remove the records. The plan goes last, because without it the shards would look like somebody else's."""
    for path in state.iterdir():
        if path.name != _PLAN:
            path.unlink()
    (state / _PLAN).unlink(missing_ok=True)
    state.rmdir()
