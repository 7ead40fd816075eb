"""Records what every data worker is doing, in memory that the trainer can read, so that a stalled run names its cause.

    board = StageBoard(workers)                  # before the workers start
    board.notes(worker)("reading", url, key)     # in the worker, in any of its threads
    board.read()                                 # in the trainer: one Stage per worker

A worker that hangs in a read cannot answer a question, so it writes down in advance what it is about to do. There is no
lock: each thread has its own record, and a record that is read while it is being written is at worst a mixture of two.
"""

from __future__ import annotations

import itertools
import os
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Literal

StageName = Literal["starting", "idle", "reading", "decoding", "augmenting", "tokenising", "dead"]
Note = Callable[[StageName, str, str], None]
"""`note(stage, shard, key)` records what the calling thread is about to do."""

_NAMES: tuple[StageName, ...] = ("starting", "idle", "reading", "decoding", "augmenting", "tokenising")
_RECORD = struct.Struct("=dqqB256s160s")  # since (s, monotonic), step, pid, stage, shard, key
_THREADS = 17  # records of a worker: its main thread and its parallel readers; further threads are not recorded


@dataclass(frozen=True)
class Stage:
    """The work that a worker has been doing for `seconds` seconds.

    `pid`: 0 if the worker has not started. `step`: the step of its batch, or -1 if it has none. `stage`: `dead` if the
    process is gone.
    """

    worker: int
    pid: int
    stage: StageName
    step: int
    shard: str
    key: str
    seconds: float

    def __str__(self) -> str:
        what = " ".join(part for part in (self.stage, self.shard, self.key) if part)
        return f"worker {self.worker} (pid {self.pid}): {what} for {self.seconds:.0f} s"


def silent(stage: StageName, shard: str = "", key: str = "") -> None:
    """A no-op Note, for readers that are not watched."""


class StageBoard:
    """The records of `workers` processes, or of the calling process if `workers` is 0.

    It reaches a worker by fork or as an argument.
    """

    def __init__(self, workers: int) -> None:
        self.workers = max(1, workers)
        self._memory = RawArray("B", self.workers * _THREADS * _RECORD.size)

    def notes(self, worker: int) -> Notes:
        """Return the object with which one worker writes its records. Call this in that worker."""
        return Notes(memoryview(self._memory), worker * _THREADS)

    def read(self) -> list[Stage]:
        """Return what each worker is doing now. If it has several threads, this is the one that has been busy longest."""
        return [self._worker(worker) for worker in range(self.workers)]

    def dead(self, wait_s: float = 0.0) -> list[Stage]:
        """Return the last records of the workers that have ended. If there are none, wait up to `wait_s` seconds for one."""
        deadline = time.monotonic() + wait_s
        while True:
            ended = [stage for stage in self.read() if stage.stage == "dead"]
            if ended or time.monotonic() >= deadline:
                return ended
            time.sleep(0.02)

    def _worker(self, worker: int) -> Stage:
        memory, first = memoryview(self._memory), worker * _THREADS
        records = [_RECORD.unpack_from(memory, (first + thread) * _RECORD.size) for thread in range(_THREADS)]
        used = [record for record in records if record[2]]
        busy = [record for record in used if _NAMES[record[3]] != "idle"]
        if not used:
            return Stage(worker, 0, "starting", -1, "", "", 0.0)
        since, step, pid, stage, shard, key = min(busy) if busy else max(used)
        name: StageName = _NAMES[stage] if _alive(pid) else "dead"
        return Stage(worker, pid, name, step, _text(shard), _text(key), max(0.0, time.monotonic() - since))


def _text(field: bytes) -> str:
    return field.rstrip(b"\0").decode("utf-8", "replace")


class Notes:
    """Writes the records of a worker. Each thread that writes gets its own record."""

    def __init__(self, memory: memoryview, first: int) -> None:
        self.step = -1  # set by the worker when it begins a batch
        self._memory, self._first = memory, first
        self._pid = os.getpid()
        self._numbers = itertools.count()
        self._own = threading.local()

    def __call__(self, stage: StageName, shard: str = "", key: str = "") -> None:
        """Record what the calling thread is about to do."""
        number = getattr(self._own, "number", None)
        if number is None:
            number = self._own.number = next(self._numbers)
        if number >= _THREADS:
            return
        place = (self._first + number) * _RECORD.size
        texts = (shard.encode("utf-8", "replace")[-256:], key.encode("utf-8", "replace")[:160])
        _RECORD.pack_into(self._memory, place, time.monotonic(), self.step, self._pid, _NAMES.index(stage), *texts)


def _alive(pid: int) -> bool:
    """Whether the process exists and has not ended."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, IndexError):
        return False
    except OSError:  # a system without /proc
        return True
    return state != "Z"  # a zombie: the worker has died, but its parent has not waited for it yet
