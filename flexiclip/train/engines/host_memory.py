"""Memory that a step on a CPU frees, and the next one asks for again, stays with the process (glibc).

An activation of a large batch is beyond glibc's largest threshold (32 MB), from which on every allocation is mapped anew and
given back when it is freed; the kernel then clears its pages in every step, amid the arithmetic. Kept, it is the same memory from
step to step. Between its largest steps the process stays as large as they made it.
`scripts/bench/training_step.py` measures it.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of mallopt(3), from malloc.h
_ENVIRONMENT = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")


def keep_freed_memory() -> bool:
    """Let malloc map nothing and give nothing back, in this process and not in its forked children; whether it does now.

    False where the C library is not glibc, or where the environment says how malloc is to be.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _ENVIRONMENT):
        return False
    if not _set(_MMAP_MAX, 0) or not _set(_TRIM_THRESHOLD, -1):  # -1: never
        return False
    _give_back_in_children()
    return True


def give_back_freed_memory() -> bool:
    """glibc's own ways, with the thresholds that it comes to where large arrays are freed; whether they are set."""
    if platform.libc_ver()[0] != "glibc":
        return False
    most = 32 * 2**20  # DEFAULT_MMAP_THRESHOLD_MAX; glibc trims beyond twice as much
    return _set(_MMAP_MAX, 65536) and _set(_MMAP_THRESHOLD, most) and _set(_TRIM_THRESHOLD, 2 * most)


@functools.cache
def _give_back_in_children() -> None:
    """A data worker that has met one huge picture need not stay as large. Once: a handler cannot be taken back."""
    os.register_at_fork(after_in_child=give_back_freed_memory)


def _set(parameter: int, value: int) -> bool:
    return bool(ctypes.CDLL(None).mallopt(parameter, value))
