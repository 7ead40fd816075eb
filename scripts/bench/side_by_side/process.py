"""A measurement in a fresh process, whose allocator and caches hold nothing from other measurements.

A script that uses this calls itself with --measure, and prints a line of JSON at the end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any


class MeasurementError(RuntimeError):
    """The measuring process ended with an error. `said` is its output on stderr."""

    def __init__(self, command: Sequence[str], said: str) -> None:
        super().__init__(f"{' '.join(command)} failed:\n{said[-3000:]}")
        self.said = said


def measure_apart(
    script: str,
    options: Mapping[str, object],
    flags: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    ranks: int = 0,
) -> dict[str, Any]:
    """Return the JSON object that `python script --flag --key=value ...` prints as its last line. Raises MeasurementError.

    ranks: if not 0, torchrun starts this many processes instead of one plain process.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks else []
    given = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
    command = [sys.executable, *launcher, script, *flags, *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})})
    if done.returncode != 0:
        raise MeasurementError(command, done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
