"""Waiting for batches with a time limit, so that a loader that hangs is reported and does not waste a cluster's time.

A read that hangs cannot be interrupted, so a thread fetches the batches and the trainer waits for the thread. After every
`data.stall_s` seconds without a batch, the trainer prints what each data worker is doing. After ten times that, the run ends.
A signal to stop the run also works while the trainer waits.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from concurrent.futures import Future, wait

from flexiclip.data.batch import Batch
from flexiclip.data.loader import Batches
from flexiclip.errors import RunError
from flexiclip.train.signals import StopSignal

STALLS_BEFORE_GIVING_UP = 10
"""The run ends after this many times data.stall_s seconds without a batch."""

_LEAVE_S = 10.0  # seconds that the end of a run waits for a batch that is being read
_POLL_S = 0.1  # seconds until a signal to stop is noticed while there is no batch


class Feed:
    """The batches of a run, one at a time, inside a `with` block."""

    def __init__(self, batches: Batches, rank: int, stall_s: float, stop: StopSignal) -> None:
        self.rank, self.stall_s, self.stop = rank, stall_s, stop
        self._batches = batches
        self._iterator = iter(batches)  # here, so that the main thread starts the workers
        self._wanted: queue.SimpleQueue[Future[Batch] | None] = queue.SimpleQueue()
        self._next: Future[Batch] | None = None  # the batch that is being fetched
        self._thread = threading.Thread(target=self._fetch, name="feed", daemon=True)
        self._thread.start()

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self._wanted.put(None)
        if self._next is not None:
            self._batches.end_workers()
        # The interpreter aborts if it ends while a thread is inside of torch, so wait for one that makes a batch. A thread that
        # hangs in a read ends with the process.
        self._thread.join(min(_LEAVE_S, self.stall_s))

    def take(self, step: int) -> Batch | None:
        """Return the next batch. None if a signal to stop arrived before the batch did.

        step: the number of the batch's step, for messages. Raises what the loader raises, and RunError after
        STALLS_BEFORE_GIVING_UP x data.stall_s.
        """
        if self.stop.asked:
            return None
        self._next = Future()
        self._wanted.put(self._next)
        began, reports = time.monotonic(), 0
        while not wait([self._next], _POLL_S).done:
            if self.stop.asked:
                return None
            waited = time.monotonic() - began
            if waited >= STALLS_BEFORE_GIVING_UP * self.stall_s:
                raise RunError(f"{self._report(step, waited)}: given up; the last checkpoint is good")
            if waited >= (reports + 1) * self.stall_s:
                reports += 1
                print(self._report(step, waited), file=sys.stderr, flush=True)
        batch, self._next = self._next, None
        return batch.result()

    def _report(self, step: int, waited: float) -> str:
        stages = "; ".join(str(stage) for stage in self._batches.stages.read())
        return f"rank {self.rank} has no batch for step {step} after {waited:.0f} s (data.stall_s={self.stall_s:g}): {stages}"

    def _fetch(self) -> None:
        while (batch := self._wanted.get()) is not None:
            try:
                batch.set_result(next(self._iterator))
            except BaseException as error:  # `take` raises it in the main thread
                batch.set_exception(error)
