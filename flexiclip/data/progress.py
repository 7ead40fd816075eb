"""Logs the progress of a long pass over shards, as lines that are readable in a terminal and in a batch job's log file."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_log = logging.getLogger(__name__)
_EVERY = 5.0  # seconds between lines; a pass that is shorter logs nothing


def progress(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Yield the items, and log `what: done/total` with an estimate of the time left every few seconds."""
    start = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= _EVERY:
            last = now
            _log.info("%s: %d/%d, %.0f s left", what, done, total, (now - start) / done * (total - done))
