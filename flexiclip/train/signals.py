"""Ctrl-C and SIGTERM: finish the step, save, leave; before the first step, just leave. A second Ctrl-C leaves at once.

Python runs a signal's handler in the main thread, between two of its own instructions. A main thread that waits inside of torch,
for ranks that have not come or for an answer of theirs, has none. So a thread is told of each signal by the kernel itself
(signal.set_wakeup_fd), and ends the process where the handler does not get its turn.
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
from types import FrameType
from typing import Any

PATIENCE_S = 0.5
"""Seconds that the main thread has to come to its handler."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal asked to stop while there was nothing to save. No error: it passes `except Exception`."""

    def __init__(self) -> None:
        super().__init__("stopped by a signal before the first step")


class StopSignal:
    """SIGINT and SIGTERM while the block runs: they raise Stopped, but after `defer` they only set `asked`.

    Where the main thread is stuck inside of torch, the process ends with the line and the exit code that it would have had.
    """

    def __init__(self) -> None:
        self.asked = False
        self.before_leaving: list[Callable[[], None]] = []  # called in a thread of its own before a stuck process is ended
        self._deferred = False
        self._old: dict[int, Any] = {}
        self._watch = _Watch(self._stuck)

    def __enter__(self) -> StopSignal:
        for number in _SIGNALS:
            self._old[number] = signal.signal(number, self._ask)
        self._watch.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._watch.end()
        for number, handler in self._old.items():
            if signal.getsignal(number) == self._ask:  # a rank that leaves with an error ignores SIGTERM from there on
                signal.signal(number, handler)
        if isinstance(error, Exception):
            self._translate(error)

    @contextmanager
    def translating(self) -> Iterator[None]:
        """Raise Stopped in place of an error that the signal has caused: an import of C code makes one of its own."""
        try:
            yield
        except Exception as error:
            self._translate(error)
            raise

    def _translate(self, error: Exception) -> None:
        if self.asked and not self._deferred:
            raise Stopped from error

    def defer(self) -> None:
        """From now on there is something to save: the run looks at `asked` between its steps."""
        self._deferred = True

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._watch.handled += 1
        if self.asked:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.asked = True
        if not self._deferred:
            raise Stopped

    def _stuck(self, number: int, count: int) -> None:
        """The handler did not get its turn. count: signals so far."""
        again = count > 1 and number == signal.SIGINT
        if not again and self.asked:
            return  # two signals of which Python made one
        if again or not self._deferred:
            for call in self.before_leaving:
                call()
            leave("flexiclip: interrupted" if again else str(Stopped()), 130 if again else stopped_code())
        print("the run stops and saves after this step; Ctrl-C once more leaves at once", file=sys.stderr, flush=True)


class Interruptible:
    """SIGINT while the block runs: KeyboardInterrupt, or the end of a process whose main thread is stuck inside of torch."""

    def __init__(self) -> None:
        self._watch = _Watch(lambda *_: leave("flexiclip: interrupted", 130))

    def __enter__(self) -> Interruptible:
        self._old = signal.signal(signal.SIGINT, self._interrupt)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.end()
        signal.signal(signal.SIGINT, self._old)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._watch.handled += 1
        raise KeyboardInterrupt


def stopped_code() -> int:
    """The exit code of a run that a signal has stopped."""
    return int(os.environ.get("FLEXICLIP_STOPPED_CODE", "0"))


def leave(line: str | None, code: int) -> None:
    """End the process from any thread, with its data workers, whatever the main thread waits for. line: None if it was said."""
    if line is not None:
        print(line, file=sys.stderr, flush=True)
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(code)


class _Watch:
    """A thread that hears of signals at once. stuck(number, signals so far) is called where `handled` does not follow."""

    def __init__(self, stuck: Callable[[int, int], None]) -> None:
        self.handled = 0
        self._stuck, self._read, self._write = stuck, *socket.socketpair()

    def start(self) -> None:
        """In the main thread only: elsewhere there are no signals."""
        self._write.setblocking(False)
        self._old = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=self._let_go)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Hear nothing more."""
        signal.set_wakeup_fd(self._old)
        self._write.shutdown(socket.SHUT_WR)  # which ends the thread, also where a data worker holds a copy of the socket
        self._thread.join()
        self._write.close()
        self._read.close()

    def _let_go(self) -> None:
        """In a data worker: its signals are not its parent's."""
        if self._write.fileno() >= 0:
            signal.set_wakeup_fd(-1)

    def _listen(self) -> None:
        count = 0
        while numbers := self._read.recv(64):
            for number in numbers:
                if number not in _SIGNALS:
                    continue
                count += 1
                deadline = time.monotonic() + PATIENCE_S
                while self.handled < count and time.monotonic() < deadline:
                    time.sleep(0.01)
                if self.handled < count:
                    self._stuck(number, count)
