"""Shows the progress of a long evaluation on stderr: a bar on a terminal, or a plain line every ten seconds in a log.

    runs/big · imagenet1k: 6,400 of 50,000 images, 212 images/s, 206 s left

Only the command line shows it. A training run that evaluates has its own panel, and a terminal has room for only one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

Watch = Callable[[Iterable[Tensor], int], Iterator[Tensor]]
"""A function (batches [b, ...], number of images in all of them) -> the same batches; it shows how many have passed."""

EVERY = 10.0  # seconds between the lines in a log; work that takes less time prints none


def silent(batches: Iterable[Tensor], total: int) -> Iterator[Tensor]:
    """Pass the batches on and show nothing."""
    return iter(batches)


def watch(title: str) -> Watch:
    """Return a Watch for one rank: it shows a bar if stderr is a terminal, else lines. title: the model and the data set."""

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
