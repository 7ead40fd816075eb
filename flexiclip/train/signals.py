"""Handling of Ctrl-C and SIGTERM: the run finishes its step, saves and ends. Before the first step it just ends.

A second Ctrl-C ends the process at once.

Python runs a signal handler in the main thread, between two instructions of Python code. A main thread that waits inside of torch
for other ranks runs no such instructions. So a second thread learns of each signal through signal.set_wakeup_fd, and ends the
process if the handler does not run.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import TypeVar

HANDLED_WITHIN_S = 0.5
"""Seconds within which the main thread must run its signal handler."""

Self = TypeVar("Self", bound="Interruptible")


class Stopped(BaseException):
    """A signal stopped the run while there was nothing to save. It is not an error, so `except Exception` does not catch it."""

    def __init__(self) -> None:
        super().__init__("stopped by a signal before the first step")


class Interruptible:
    """Handles SIGINT inside a `with` block: raises KeyboardInterrupt, or ends a process whose main thread is stuck in torch."""

    def __init__(self, *others: signal.Signals) -> None:
        """others: signals that are handled too."""
        self._numbers, self._handled = (signal.SIGINT, *others), 0
        self._old: dict[int, Callable[[], object]] = {}  # each sets the handler that was there before
        self._read, self._write = socket.socketpair()

    def __enter__(self: Self) -> Self:
        """Start to listen. Must be called in the main thread, because Python handles signals only there."""
        for number in self._numbers:
            self._old[number] = partial(signal.signal, number, signal.signal(number, self._handle))
        self._write.setblocking(False)
        self._old_wakeup = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=self._let_go)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        signal.set_wakeup_fd(self._old_wakeup)
        self._write.shutdown(socket.SHUT_WR)  # this ends the thread, even if a data worker holds a copy of the socket
        self._thread.join()
        self._write.close()
        self._read.close()
        for number, restore in self._old.items():
            if signal.getsignal(number) == self._handle:  # heartbeat.py may have set SIGTERM to be ignored
                restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._handled += 1
        self._act(number)

    def _act(self, number: int) -> None:
        """Act on a signal, in the main thread."""
        raise KeyboardInterrupt

    def _stuck(self, number: int, count: int) -> None:
        """Act on a signal that the main thread has not handled, in another thread. count: number of signals so far."""
        leave("flexiclip: interrupted", 130)

    def _let_go(self) -> None:
        """Stop listening in a data worker, whose signals are not meant for its parent."""
        if self._write.fileno() >= 0:
            signal.set_wakeup_fd(-1)

    def _listen(self) -> None:
        count = 0
        while numbers := self._read.recv(64):
            for number in numbers:
                if number not in self._numbers:
                    continue
                count += 1
                deadline = time.monotonic() + HANDLED_WITHIN_S
                while self._handled < count and time.monotonic() < deadline:
                    time.sleep(0.01)
                if self._handled < count:
                    self._stuck(number, count)


class StopSignal(Interruptible):
    """Handles SIGINT and SIGTERM inside a `with` block: they raise Stopped, but after `defer` they only set `asked`.

    If the main thread is stuck inside of torch, the process is ended with the same message and exit code.
    """

    def __init__(self) -> None:
        super().__init__(signal.SIGTERM)
        self.asked = False
        self.before_leaving: list[Callable[[], None]] = []  # called from another thread before a stuck process is ended
        self._deferred = False

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        super().__exit__(kind, error, trace)
        if isinstance(error, Exception):
            self._translate(error)

    @contextmanager
    def translating(self) -> Iterator[None]:
        """Raise Stopped in place of an error that the signal has caused, because importing C code turns it into other errors."""
        try:
            yield
        except Exception as error:
            self._translate(error)
            raise

    def _translate(self, error: Exception) -> None:
        if self.asked and not self._deferred:
            raise Stopped from error

    def defer(self) -> None:
        """From now on only set `asked`, because there is something to save. The run checks `asked` between its steps."""
        self._deferred = True

    def _act(self, number: int) -> None:
        if self.asked:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.asked = True
        if not self._deferred:
            raise Stopped

    def _stuck(self, number: int, count: int) -> None:
        again = count > 1 and number == signal.SIGINT
        if not again and self.asked:
            return  # Python has merged two signals into one
        if again or not self._deferred:
            for call in self.before_leaving:
                call()
            if again:
                super()._stuck(number, count)
            leave(str(Stopped()), stopped_code())
        print("the run stops and saves after this step; Ctrl-C once more leaves at once", file=sys.stderr, flush=True)


def stopped_code() -> int:
    """Return the exit code of a run that a signal has stopped: 0, or the value of FLEXICLIP_STOPPED_CODE."""
    return int(os.environ.get("FLEXICLIP_STOPPED_CODE", "0"))


def leave(line: str | None, code: int) -> None:
    """End the process and its data workers, from any thread, even if the main thread is waiting.

    line: printed on stderr; None if it was printed already.
    """
    if line is not None:
        print(line, file=sys.stderr, flush=True)
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(code)
