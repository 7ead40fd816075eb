"""Progress of long passes over shards as log lines: readable in a terminal, in a batch job's file and from any thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_log = logging.getLogger(__name__)
_EVERY = 5.0  # seconds between lines; quicker work says nothing


def progress(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Hand the items on, logging `what: done/total` with the time left every few seconds."""
    start = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= _EVERY:
            last = now
            _log.info("%s: %d/%d, %.0f s left", what, done, total, (now - start) / done * (total - done))
