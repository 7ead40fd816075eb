"""Measures time and memory: of works that take turns, in fresh processes, and of this process.

On a shared machine the time of one work alone means little. Works therefore take turns, so that other load on the machine slows
all of them alike. The median over rounds of theirs / ours, where the two of a pair are measured one directly after the other, is
more reliable than the ratio of two medians.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Work = Callable[[], object]

Clock = Callable[[], float]
"""A clock in seconds: time.perf_counter, or time.process_time, which counts the CPU seconds of this process.

The latter is more reliable for one thread on a machine that others use. With several threads it also counts their waiting.
"""


def seconds(work: Work, clock: Clock = time.perf_counter) -> float:
    """Return the seconds of one call."""
    start = clock()
    work()
    return clock() - start


def take_turns(
    works: Mapping[str, Work],
    rounds: int,
    warm_up: int = 1,
    clock: Clock = time.perf_counter,
    before: Callable[[str], object] = lambda name: None,
) -> dict[str, list[float]]:
    """Return name -> seconds of each of `rounds` rounds. Every work has one turn per round (A B A B).

    warm_up: number of rounds before these, which are not counted. before: called with a work's name before each of its turns,
    and not timed.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(warm_up + rounds):
        for name, work in works.items():
            before(name)
            spent = seconds(work, clock)
            if turn >= warm_up:
                times[name].append(spent)
    return times


def ratio(of: Sequence[float], to: Sequence[float]) -> float:
    """Return the median over rounds of of / to. Raises ValueError if their numbers of rounds differ."""
    return statistics.median(a / b for a, b in zip(of, to, strict=True))


class MeasurementError(RuntimeError):
    """Raised if the measuring process ended with an error. `said` is its output on stderr."""

    def __init__(self, command: Sequence[str], said: str) -> None:
        super().__init__(f"{' '.join(command)} failed:\n{said[-3000:]}")
        self.said = said


def measure_apart(
    module: str,
    options: Mapping[str, object],
    flags: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    ranks: int = 0,
) -> dict[str, Any]:
    """Measure in a fresh process, whose allocator and caches hold nothing from other measurements.

    Returns the JSON object that `python -m MODULE --flag --key=value ...` prints as its last line. Raises MeasurementError. A
    subject that uses this starts itself with the flag --measure.

    ranks: if not 0, torchrun starts this many processes instead of one plain process.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks else []
    given = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
    command = [sys.executable, *launcher, "-m", module, *flags, *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})})
    if done.returncode != 0:
        raise MeasurementError(command, done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def memory(field: str) -> int:
    """Return a field of /proc/self/status in bytes, such as VmHWM (the peak) or VmRSS (now). Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def forget_peak() -> int:
    """Reset the peak VmHWM to VmRSS, and return VmRSS in bytes. Linux only."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")
