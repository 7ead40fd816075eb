"""The log files of a run and its progress display, and the limit on samples that cannot be used.

Metrics writes the files into the run folder: metrics.jsonl, eval.jsonl, bad_samples.jsonl, and with train.log_samples
samples.jsonl. It also passes the numbers on to the trackers (trackers.py), such as TensorBoard. Progress shows a live panel on a
terminal, or prints plain lines into a log. BadShare ends a run that meets too many unusable samples.
"""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexiclip.errors import UserError
from flexiclip.files import write_whole
from flexiclip.train.trackers import Tracker, curves_of, evaluation_curves, one_line

if TYPE_CHECKING:
    from rich.live import Live

GRACE = 8
"""A run never ends with fewer unusable samples than this, because the first batch of a good data set may contain a few."""

_ECHO = 4
"""Columns that the panel leaves free. A terminal writes ^C at its end. If that began a new line, the panel's top would stay."""

_REASONS = 3  # most reasons that a message lists


class BadShare:
    """The share of the samples that could not be used, and the reasons. A few are replaced and logged; too many end the run.

    It counts what all ranks together have read since this start of the run. So a month without errors does not hide a storage
    that fails now, and every rank comes to the same decision.
    """

    def __init__(self, limit: float) -> None:
        """limit: the largest share, 0 to 1, with which a run goes on (`data.max_bad_fraction`)."""
        self.limit, self.bad = limit, 0
        self._reasons: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, bad: list[dict[str, str]]) -> None:
        """Count unusable samples of all ranks, given as {shard, key, reason}."""
        for row in bad:
            kind = row["reason"].split(":")[0]
            self.bad += 1
            self._reasons[kind] += 1
            self._examples.setdefault(kind, " ".join(filter(None, (row["shard"], row["key"]))))

    def check(self, good: int) -> None:
        """Raise UserError if the share of unusable samples is too large. good: number of samples that were used."""
        read = good + self.bad
        if self.bad < GRACE or self.bad <= self.limit * read:
            return
        why = "; ".join(f"{count} x {kind}, as in {self._examples[kind]}" for kind, count in self._reasons.most_common(_REASONS))
        raise UserError(
            f"{self.bad} of {read} samples cannot be used, more than data.max_bad_fraction={self.limit:g}: {why}. "
            "bad_samples.jsonl names them all: repair the shards or the storage (flexiclip data check), or raise the limit; "
            "the run is saved"
        )


class JsonLines:
    """An append-only file with one JSON object per line, which is cut back when a run resumes.

    If the disk is full or gone, a RunError ends the run, because lost rows would be missing for good.
    """

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        """resume_step: drop lines whose `step` is larger. A last line that a crash cut short is always dropped."""
        self.path = path
        kept = [row for row in read_lines(path) if resume_step is None or row["step"] <= resume_step]
        with one_line(path):
            write_whole(path, "".join(json.dumps(row) + "\n" for row in kept))
            self._file = path.open("ab", buffering=0)  # so that closing does not retry a failed write

    def write(self, row: Mapping[str, object]) -> None:
        """Append one object."""
        line = json.dumps(row).encode() + b"\n"
        with one_line(self.path):
            if self._file.write(line) < len(line):  # the disk became full within the line
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file, without lines that are incomplete. Empty if there is no file."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # a line that a crash cut short
            continue
    return rows


class Metrics:
    """The log files of a run, and its trackers. Only the main rank has them."""

    def __init__(self, run: Path, step: int, log_samples: bool, trackers: Sequence[Tracker] = ()) -> None:
        self.trackers = tuple(trackers)
        self.lines = JsonLines(run / "metrics.jsonl", step)
        self.samples = JsonLines(run / "samples.jsonl", step) if log_samples else None
        self.results = JsonLines(run / "eval.jsonl", step)
        self.evaluated = max((row["step"] for row in read_lines(run / "eval.jsonl")), default=0)
        self.bad = JsonLines(run / "bad_samples.jsonl")
        self._named = {_identity(row) for row in read_lines(run / "bad_samples.jsonl")}

    def log(self, row: Mapping[str, float]) -> None:
        """Write a row to metrics.jsonl and to the trackers.

        row["step"] counts finished steps. A number that is not finite (in a skipped step) is written as null, because JSON has
        no notation for it.
        """
        self.lines.write({name: value if math.isfinite(value) else None for name, value in row.items()})
        self._draw(int(row["step"]), curves_of(row))

    def log_evaluation(self, step: int, values: dict[str, float]) -> None:
        """Write a row to eval.jsonl and to the trackers."""
        self.results.write({"step": step, **values})
        self.evaluated = step
        self._draw(step, evaluation_curves(values))

    def log_bad(self, bad: list[dict[str, str]]) -> None:
        """Write each unreadable sample to bad_samples.jsonl, once, however often it is read."""
        for row in bad:
            if _identity(row) not in self._named:
                self._named.add(_identity(row))
                self.bad.write(row)

    def log_samples(self, step: int, seqhw: int, samples: list[str]) -> None:
        """Write the keys of the samples of a global batch to samples.jsonl, if train.log_samples is set."""
        if self.samples is not None:
            self.samples.write({"step": step, "seqhw": seqhw, "samples": samples})

    def close(self) -> None:
        """Flush and close all files."""
        for file in (self.lines, self.samples, self.results, self.bad):
            if file is not None:
                file.close()
        for tracker in self.trackers:
            tracker.close()

    def _draw(self, step: int, curves: Mapping[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log(step, curves)


def _identity(row: dict[str, str]) -> tuple[str, str]:
    return row["shard"], row["key"]


class Progress:
    """The progress display: step, loss, images/s, share of time spent waiting for data, loss at each length, time left.

    On a terminal it is a live panel, otherwise plain lines on stderr. Only the main rank prints.
    """

    def __init__(self, total: int, start: int, main: bool) -> None:
        self.total, self.start, self.main = total, start, main
        self.began = time.monotonic()
        self.by_length: dict[int, float] = {}
        self._live: Live | None = None
        if main and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), refresh_per_second=4)
            self._live.start()

    def say(self, text: str) -> None:
        """Print one line, above the panel if there is one."""
        if not self.main:
            return
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def seen(self, seqhw: int, loss: float) -> None:
        """Add a step's loss to the running mean of its length. A loss that is not finite (of a skipped step) is left out."""
        if not math.isfinite(loss):
            return
        old = self.by_length.get(seqhw, loss)
        self.by_length[seqhw] = old + 0.1 * (loss - old)

    def show(self, row: Mapping[str, float]) -> None:
        """Show a row of metrics.jsonl."""
        step, waiting = f"step {row['step']}/{self.total}", row["data_s"] / max(row["step_s"], 1e-9)
        line = (
            f"loss {row['loss']:.4f}  seqhw {row['seqhw']}  lr {row['lr']:.2e}  {row['images_per_s']:.0f} images/s  "
            f"data wait {waiting:.0%}  left {self._left(row['step'])}"
        )
        if self._live is not None:
            from rich.panel import Panel

            scale = f"logit scale {math.exp(row['logit_scale']):.2f}  " if "logit_scale" in row else ""
            lengths = "  ".join(f"{s}: {loss:.2f}" for s, loss in sorted(self.by_length.items()))
            width = max(20, self._live.console.width - _ECHO)
            self._live.update(Panel(f"{line}\n{scale}loss at seqhw  {lengths}", title=step, width=width))
        elif self.main:
            print(f"{step}  {line}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Restore the terminal."""
        if self._live is not None:
            self._live.stop()

    def _left(self, step: float) -> str:
        seconds = (time.monotonic() - self.began) / max(1, step - self.start) * (self.total - step)
        return str(timedelta(seconds=int(seconds)))
