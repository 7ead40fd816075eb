"""What a run writes down: metrics, evaluations, bad samples, samples, TensorBoard. Only the main rank holds one."""

from __future__ import annotations

import errno
import json
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from flexiclip.errors import RunError
from flexiclip.files import write_whole
from flexiclip.train.checkpoints.files import system_reason


class JsonLines:
    """An append-only file of one JSON object a line, written line by line, cut back when a run resumes.

    A disk that is full, or gone, ends the run in one line (RunError): rows that are lost would be missing for good.
    """

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        """resume_step: drop the lines whose `step` lies beyond it, and a last line that a crash cut short."""
        self.path = path
        kept = [row for row in read_lines(path) if resume_step is None or row["step"] <= resume_step]
        with _one_line(path):
            write_whole(path, "".join(json.dumps(row) + "\n" for row in kept))
            self._file = path.open("ab", buffering=0)  # what could not be written is not tried again at close

    def write(self, row: dict[str, Any]) -> None:
        """Append one object."""
        line = json.dumps(row).encode() + b"\n"
        with _one_line(self.path):
            if self._file.write(line) < len(line):  # the disk was full in mid-line
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {system_reason(error)}: "
            "when that is fixed, the same command goes on from the newest checkpoint"
        ) from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON-lines file; none when there is no file."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # the line a crash cut short
            continue
    return rows


class Metrics:
    """The run's log files."""

    def __init__(self, run: Path, step: int, log_samples: bool) -> None:
        self.folder = run
        self._hook = threading.excepthook
        threading.excepthook = self._thread_died
        self.lines = JsonLines(run / "metrics.jsonl", step)
        self.samples = JsonLines(run / "samples.jsonl", step) if log_samples else None
        self.results = JsonLines(run / "eval.jsonl", step)
        self.evaluated = max((row["step"] for row in read_lines(run / "eval.jsonl")), default=0)
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
        self.bad = JsonLines(run / "bad_samples.jsonl")
        self._named = {_identity(row) for row in read_lines(run / "bad_samples.jsonl")}

    def log(self, row: dict[str, Any]) -> None:
        """One row of metrics.jsonl and TensorBoard; row["step"] counts finished steps. Lengths get a curve each.

        A number that is not finite, of a step that was skipped, is null: JSON has no name for it.
        """
        row = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()}
        self.lines.write(row)
        curves = {name: value for name, value in row.items() if name not in ("step", "seqhw")}
        if "seqhw" in row:
            curves[f"loss_at_seqhw/{row['seqhw']}"] = row["loss"]
        self._draw(row["step"], curves)

    def log_evaluation(self, step: int, values: dict[str, float]) -> None:
        """One row of eval.jsonl, and a TensorBoard curve a value."""
        self.results.write({"step": step, **values})
        self.evaluated = step
        self._draw(step, values)

    def log_bad(self, bad: list[dict[str, str]]) -> None:
        """Name each unreadable sample once, however often it is met."""
        for row in bad:
            if _identity(row) not in self._named:
                self._named.add(_identity(row))
                self.bad.write(row)

    def log_samples(self, step: int, seqhw: int, samples: list[str]) -> None:
        """The samples of a global batch, for a run with train.log_samples."""
        if self.samples is not None:
            self.samples.write({"step": step, "seqhw": seqhw, "samples": samples})

    def close(self) -> None:
        """Flush and close everything."""
        for file in (self.lines, self.samples, self.results, self.bad):
            if file is not None:
                file.close()
        with suppress(OSError):  # a full disk: metrics.jsonl has every number
            self.board.close()
        threading.excepthook = self._hook

    def _thread_died(self, arguments: threading.ExceptHookArgs) -> None:
        """TensorBoard's own thread dies of a full disk with a traceback; its next call raises the same error, which is said."""
        if not type(arguments.thread).__module__.startswith("tensorboard."):
            self._hook(arguments)

    def _draw(self, step: int, values: dict[str, Any]) -> None:
        with _one_line(self.folder / "tensorboard"):
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self.board.add_scalar(name, value, step)


def _identity(row: dict[str, str]) -> tuple[str, str]:
    return row["shard"], row["key"]
