"""Shows the progress of long passes over shards and images, readable in a terminal and in the log of a batch job.

`progress` logs lines while shards are indexed or checked. `watch` shows the images and the texts of an evaluation on stderr: a
bar on a terminal, else a plain line every ten seconds:

    runs/big · imagenet1k: 6,400 of 50,000 images, 212 images/s, 206 s left

A training run has its own panel (train/logs.py).
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")
Batch = TypeVar("Batch", bound=Sized)
Show = Callable[[int, float], None]
"""A function (how much has passed, seconds since the start) that shows it."""

Watch = Callable[[Iterable[Batch], int], Iterator[Batch]]
"""A function (batches of b items, number of items in all of them) -> the same batches; it shows how many have passed."""

_log = logging.getLogger(__name__)
SHARDS_EVERY, EVERY = 5.0, 10.0  # seconds between the lines of `progress` and of `watch`; a shorter pass shows none


def progress(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Yield the items, and log `what: done/total` with an estimate of the time left every few seconds."""

    def show(done: int, seconds: float) -> None:
        _log.info("%s: %d/%d, %.0f s left", what, done, total, seconds / done * (total - done))

    return _passing(items, lambda _: 1, _now_and_then(SHARDS_EVERY, show))


def silent(batches: Iterable[Batch], total: int) -> Iterator[Batch]:
    """Pass the batches on and show nothing."""
    return iter(batches)


def watch(title: str, unit: str = "images") -> Watch[Batch]:
    """Return a Watch for one rank: it shows a bar if stderr is a terminal, else lines.

    `title` names the model and the data set, and `unit` what is counted.
    """

    def show(batches: Iterable[Batch], total: int) -> Iterator[Batch]:
        return _bar(title, unit, batches, total) if sys.stderr.isatty() else _lines(title, unit, batches, total)

    return show


def _passing(items: Iterable[T], size: Callable[[T], int], show: Show) -> Iterator[T]:
    """Yield the items. When the caller is done with one, show the total size of those that have passed."""
    start = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += size(item)
        show(done, max(time.monotonic() - start, 1e-9))


def _now_and_then(every: float, show: Show) -> Show:
    """Return `show` restricted to one call in `every` seconds, and to calls after something has passed."""
    last = 0.0

    def limited(done: int, seconds: float) -> None:
        nonlocal last
        if done and seconds - last >= every:
            last = seconds
            show(done, seconds)

    return limited


def _lines(title: str, unit: str, batches: Iterable[Batch], total: int) -> Iterator[Batch]:
    def show(done: int, seconds: float) -> None:
        speed = done / seconds
        left = max(0, total - done) / speed
        text = f"{title}: {done:,} of {total:,} {unit}, {speed:,.0f} {unit}/s, {left:,.0f} s left"
        print(text, file=sys.stderr, flush=True)

    return _passing(batches, len, _now_and_then(EVERY, show))


def _bar(title: str, unit: str, batches: Iterable[Batch], total: int) -> Iterator[Batch]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escape(title), total=total, speed="")

        def show(done: int, seconds: float) -> None:
            bar.update(task, completed=done, speed=f"{done / seconds:,.0f} {unit}/s")

        yield from _passing(batches, len, show)
