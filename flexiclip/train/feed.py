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

from flexiclip.data.batch import Batch
from flexiclip.data.loader import Batches
from flexiclip.errors import RunError
from flexiclip.train.signals import StopSignal

PATIENCE = 10
"""The run ends after PATIENCE times data.stall_s seconds without a batch."""

_LEAVE_S = 10.0  # seconds that the end of a run waits for a batch that is being read
_POLL_S = 0.1  # seconds until a signal to stop is noticed while there is no batch


class Feed:
    """The batches of a run, one at a time, inside a `with` block."""

    def __init__(self, batches: Batches, rank: int, stall_s: float, stop: StopSignal) -> None:
        self.rank, self.stall_s, self.stop = rank, stall_s, stop
        self._batches = batches
        self._iterator = iter(batches)  # here, so that the main thread starts the workers
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
        # The interpreter aborts if it ends while a thread is inside of torch, so wait for one that makes a batch. A thread that
        # hangs in a read ends with the process.
        self._thread.join(min(_LEAVE_S, self.stall_s))

    def take(self, step: int) -> Batch | None:
        """Return the next batch. None if a signal to stop arrived before the batch did.

        step: the number of the batch's step, for messages. Raises what the loader raises, and RunError after
        PATIENCE x data.stall_s.
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
            except BaseException as error:  # `take` raises it in the main thread
                self._fetched.put(error)
