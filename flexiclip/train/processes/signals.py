"""Ctrl-C and SIGTERM: finish the step, save, leave; before the first step, just leave. A second Ctrl-C leaves at once."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any


class Stopped(BaseException):
    """A signal asked to stop while there was nothing to save. No error: it passes `except Exception`."""

    def __init__(self) -> None:
        super().__init__("stopped by a signal before the first step")


class StopSignal:
    """SIGINT and SIGTERM while the block runs: they raise Stopped, but after `defer` they only set `asked`."""

    def __init__(self) -> None:
        self.asked = False
        self._deferred = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._old[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        if self.asked and not self._deferred and isinstance(error, Exception):
            raise Stopped from error  # which the code that it hit has made an error of its own: an import of C code does

    def defer(self) -> None:
        """From now on there is something to save: the run looks at `asked` between its steps."""
        self._deferred = True

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.asked = True
        if not self._deferred:
            raise Stopped
