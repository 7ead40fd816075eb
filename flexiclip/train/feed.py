"""Waiting for data by the clock: a loader that hangs is reported by stage, and ends the run before it burns a cluster.

A read that hangs cannot be interrupted, so batches are fetched in a thread and the trainer waits for the thread. Every
`data.stall_s` without a batch it says what each data worker is at; after ten times that the run ends. A signal to stop is
obeyed while it waits.
"""

from __future__ import annotations

import queue
import sys
import threading
import time

from flexiclip.data.batch import Batch
from flexiclip.data.loader import Batches
from flexiclip.errors import RunError
from flexiclip.train.signals import StopSignal

PATIENCE = 10
"""Times data.stall_s without a batch after which the run ends."""

_LEAVE_S = 10.0  # for a batch that is being read when the run ends
_POLL_S = 0.1  # how soon a signal to stop is noticed while there is no batch


class Feed:
    """The batches of a run, one at a time, for the time of a `with` block."""

    def __init__(self, batches: Batches, rank: int, stall_s: float, stop: StopSignal) -> None:
        self.rank, self.stall_s, self.stop = rank, stall_s, stop
        self._batches = batches
        self._iterator = iter(batches)  # here, because workers are children of the main thread
        self._wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._fetched: queue.SimpleQueue[Batch | BaseException] = queue.SimpleQueue()
        self._fetching = False
        self._thread = threading.Thread(target=self._fetch, name="feed", daemon=True)
        self._thread.start()

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self._wanted.put(False)
        if self._fetching:
            self._batches.end_workers()
        # An interpreter that ends under a thread inside of torch aborts. One that hangs in a read ends with the process.
        self._thread.join(min(_LEAVE_S, self.stall_s))

    def take(self, step: int) -> Batch | None:
        """The next batch, which is that of `step`; None when a signal asked to stop before there was one.

        Raises what the loader raises, and RunError after PATIENCE x data.stall_s.
        """
        if self.stop.asked:
            return None
        self._wanted.put(True)
        self._fetching = True
        began, reports = time.monotonic(), 0
        while True:
            try:
                fetched = self._fetched.get(timeout=_POLL_S)
            except queue.Empty:
                if self.stop.asked:
                    return None
                waited = time.monotonic() - began
                if waited >= PATIENCE * self.stall_s:
                    raise RunError(f"{self._report(step, waited)}: given up; the last checkpoint is good") from None
                if waited >= (reports + 1) * self.stall_s:
                    reports += 1
                    print(self._report(step, waited), file=sys.stderr, flush=True)
                continue
            self._fetching = False
            if isinstance(fetched, BaseException):
                raise fetched
            return fetched

    def _report(self, step: int, waited: float) -> str:
        stages = "; ".join(str(stage) for stage in self._batches.stages.read())
        return f"rank {self.rank} has no batch for step {step} after {waited:.0f} s (data.stall_s={self.stall_s:g}): {stages}"

    def _fetch(self) -> None:
        while self._wanted.get():
            try:
                self._fetched.put(next(self._iterator))
            except BaseException as error:  # handed over: it is raised where the batch is waited for
                self._fetched.put(error)
