"""What the trainer asks of malloc: freed arrays stay with the process, so that no step pays for pages again; workers differ."""

from __future__ import annotations

import subprocess
import sys

import pytest

from flexiclip.train import blocks as host_memory

PROGRAM = """
import os, resource, sys
import torch
from flexiclip.train.blocks import keep_freed_memory

def faults(megabytes=48):  # beyond glibc's largest threshold
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.ones(megabytes << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
plain = faults()
kept = keep_freed_memory()
for _ in range(4):  # an aligned array needs a little more than the last one freed: the heap grows until one fits
    faults()
print(kept, plain, faults(), flush=True)
if os.fork() == 0:
    print(faults(300), flush=True)  # more than the parent kept
    os._exit(0)
os.wait()
"""


def run(environment: dict[str, str]) -> list[str]:
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        command, env={"OMP_NUM_THREADS": "1", **environment}, capture_output=True, text=True, check=True, timeout=300
    )
    return done.stdout.split()


def test_freed_arrays_stay_with_the_process_and_not_with_its_children() -> None:
    kept, plain, after, child = run({})
    pages = 3 * 48 * 256  # 4 KB each; larger ones would be fewer
    assert kept == "True"
    assert int(plain) > pages // 2
    assert int(after) < pages // 100
    assert int(child) > 300 * 256 * 2, "each of the three was mapped anew"


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_"])
def test_what_the_environment_says_holds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each variable alone, at a value of glibc's own too: malloc is asked for nothing."""
    asked: list[int] = []
    monkeypatch.setattr(host_memory, "_set", lambda parameter, value: asked.append(parameter) or False)
    monkeypatch.setattr(host_memory.platform, "libc_ver", lambda: ("glibc", "2.35"))
    assert host_memory.keep_freed_memory() is False
    assert len(asked) == 1, "without a variable it asks, and is refused here"
    monkeypatch.setenv(name, str(128 << 10))
    assert host_memory.keep_freed_memory() is False
    assert len(asked) == 1
