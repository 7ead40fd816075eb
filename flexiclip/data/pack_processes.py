"""Writes shards in several processes, each of which takes one shard at a time.

The processes count the rows that they have done in shared memory. They end when the first process ends, however it ends, so that
no process goes on writing after a kill.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from typing import TYPE_CHECKING, Any

from flexiclip.data.pack_shards import Job, write_shard
from flexiclip.errors import RunError

if TYPE_CHECKING:
    from ctypes import Array, c_bool, c_uint64

_EVERY_S = 0.25  # seconds between two reports of progress
_AHEAD = 2  # shards per process that are handed out at a time

_here: dict[str, Any] = {}  # the job and the shared memory of this process


def in_processes(job: Job, shards: Sequence[int], processes: int) -> Iterator[int]:
    """Write the shards, and yield now and then how many rows were done since. Raises RunError if a process was killed."""
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of other libraries' threads
    done, stop = context.RawArray("Q", len(shards)), context.RawValue("b", 0)
    queue = list(enumerate(shards))[::-1]
    shown = 0
    with ProcessPoolExecutor(min(processes, len(shards)), context, _start, (job, done, stop)) as pool:
        waiting: set[Future[None]] = set()
        try:
            while queue or waiting:
                while queue and len(waiting) < _AHEAD * processes:
                    waiting.add(pool.submit(_write, *queue.pop()))
                finished, waiting = wait(waiting, _EVERY_S, FIRST_COMPLETED)
                for future in finished:
                    future.result()
                total = sum(done)
                yield total - shown
                shown = total
        except BrokenProcessPool:
            raise RunError(
                "a process that wrote shards was killed, perhaps for its memory: the same command goes on, with fewer --processes"
            ) from None
        except BaseException:
            stop.value = 1
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start(job: Job, done: Array[c_uint64], stop: c_bool) -> None:
    """Prepare a process: it leaves Ctrl-C to the first process, uses one thread, and does not outlive the first process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported
    _here.update(job=job, done=done, stop=stop)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_leave_with, args=(parent.sentinel,), daemon=True).start()


def _leave_with(sentinel: int) -> None:
    wait_for([sentinel])
    os._exit(1)


def _write(slot: int, shard: int) -> None:
    """Write a shard, and count its rows in its own slot."""
    for rows in write_shard(_here["job"], shard):
        _here["done"][slot] += rows
        if _here["stop"].value:
            return
