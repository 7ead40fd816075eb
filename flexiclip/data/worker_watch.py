"""What every data worker is at, in memory that the trainer reads without asking: the reason of a stalled run, by name.

    board = StageBoard(workers)                  # before the workers start
    board.notes(worker)("reading", url, key)     # in the worker, in any of its threads
    board.read()                                 # in the trainer: one Stage a worker

A worker that hangs in a read cannot answer a question, so it writes down beforehand what it is going to do. Nobody takes a lock:
a thread owns its record, and a record read while it is being written is at worst a mixture of two.
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
"""note(stage, shard, key): what this thread is going to do now."""

_NAMES: tuple[StageName, ...] = ("starting", "idle", "reading", "decoding", "augmenting", "tokenising")
_RECORD = struct.Struct("=dqqB256s160s")  # since (s, monotonic), step, pid, stage, shard, key
_THREADS = 17  # records of a worker: its own thread and those that read in parallel; a thread beyond them goes unnoted


@dataclass(frozen=True)
class Stage:
    """What a worker has been at for `seconds`.

    pid: 0 before it has started; step: the batch's, -1 when it has none; stage: `dead` when the process is gone.
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
    """The Note of who is not watched."""


class StageBoard:
    """Records of `workers` processes, or of the calling one when that is 0. It reaches a worker by fork or as its argument."""

    def __init__(self, workers: int) -> None:
        self.workers = max(1, workers)
        self._memory = RawArray("B", self.workers * _THREADS * _RECORD.size)

    def notes(self, worker: int) -> Notes:
        """The writing end of one worker; call it in that worker."""
        return Notes(memoryview(self._memory), worker * _THREADS)

    def read(self) -> list[Stage]:
        """What each worker is at now: of its threads, the one that has been busy longest."""
        return [self._worker(worker) for worker in range(self.workers)]

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


class Notes:
    """A worker's writing end. Each thread that notes something gets a record of its own."""

    def __init__(self, memory: memoryview, first: int) -> None:
        self.step = -1  # set by the worker when it begins a batch
        self._memory, self._first = memory, first
        self._pid = os.getpid()
        self._numbers = itertools.count()
        self._own = threading.local()

    def __call__(self, stage: StageName, shard: str = "", key: str = "") -> None:
        """Note what the calling thread is going to do."""
        number = getattr(self._own, "number", None)
        if number is None:
            number = self._own.number = next(self._numbers)
        if number >= _THREADS:
            return
        place = (self._first + number) * _RECORD.size
        texts = (shard.encode("utf-8", "replace")[-256:], key.encode("utf-8", "replace")[:160])
        _RECORD.pack_into(self._memory, place, time.monotonic(), self.step, self._pid, _NAMES.index(stage), *texts)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, IndexError):
        return False
    except OSError:  # a system without /proc
        return True
    return state != "Z"  # a worker that died and that nobody has waited for yet


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode("utf-8", "replace")
