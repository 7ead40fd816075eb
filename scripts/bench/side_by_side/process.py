"""One measurement in a fresh process, where no allocator and no cache remembers another's.

A script that measures so calls itself with --measure and prints one line of JSON last.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def measure_apart(
    script: str,
    options: Mapping[str, object],
    flags: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The JSON object that `python script --flag --key=value ...` prints as its last line. Raises CalledProcessError."""
    command = [sys.executable, script, *flags, *(f"--{key.replace('_', '-')}={value}" for key, value in options.items())]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **(environment or {})})
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
