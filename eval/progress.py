"""What a person sees of a long evaluation: a bar on a terminal, a plain line now and then in a log.

    runs/big · imagenet1k: 6,400 of 50,000 images, 212 images/s, 206 s left

Only the command line watches: a training run that evaluates has a panel of its own, and a terminal has room for one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

Watch = Callable[[Iterable[Tensor], int], Iterator[Tensor]]
"""(batches [b, ...], images in all of them) -> the same batches, seen going by."""

EVERY = 10.0  # seconds between the lines of a log; quicker work says nothing


def silent(batches: Iterable[Tensor], total: int) -> Iterator[Tensor]:
    """A Watch that shows nothing."""
    return iter(batches)


def watch(title: str) -> Watch:
    """A Watch on stderr, for one rank: a bar where a person looks on, else lines. title: the model and the data set."""

    def show(batches: Iterable[Tensor], total: int) -> Iterator[Tensor]:
        return _bar(title, batches, total) if sys.stderr.isatty() else _lines(title, batches, total)

    return show


def _lines(title: str, batches: Iterable[Tensor], total: int) -> Iterator[Tensor]:
    start = last = time.monotonic()
    done = 0
    for batch in batches:
        yield batch
        done += len(batch)
        now = time.monotonic()
        if now - last >= EVERY and done:
            last = now
            speed = done / (now - start)
            left = max(0, total - done) / speed
            text = f"{title}: {done:,} of {total:,} images, {speed:,.0f} images/s, {left:,.0f} s left"
            print(text, file=sys.stderr, flush=True)


def _bar(title: str, batches: Iterable[Tensor], total: int) -> Iterator[Tensor]:
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
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(escape(title), total=total, speed="")
        start = time.monotonic()
        done = 0
        for batch in batches:
            yield batch
            done += len(batch)
            speed = done / max(time.monotonic() - start, 1e-9)
            progress.update(task, completed=done, speed=f"{speed:,.0f} images/s")
