"""Handing batches from data workers to the trainer through shared memory, and saying so in one line when there is too little.

Left to itself, torch moves a batch there in a thread of the worker. Where /dev/shm is full (docker gives a container 64 MB), that
thread prints a traceback and drops the batch, and the trainer waits for it for ever.
"""

from __future__ import annotations

import contextlib
import os

from torch.utils.data import get_worker_info

from flexiclip.data.batch import TENSORS, Batch
from flexiclip.errors import RunError

_FOLDER = "/dev/shm"  # noqa: S108 (nothing is written there by its name)
_MB = 2**20
_LEAST = _MB  # bytes; the queues of the workers need some, and a batch of images hardly less


def require_room() -> None:
    """Raise RunError where there is not even room for the queues of the data workers."""
    free, total = _room()
    if total and free < _LEAST:
        raise _too_little("the data workers need more")


def shared(batch: Batch) -> Batch | RunError:
    """In a data worker the batch with its tensors in shared memory, or what to say when they do not fit. Elsewhere the batch."""
    if get_worker_info() is None:
        return batch
    try:
        for name in TENSORS:
            getattr(batch, name).share_memory_()
    except (RuntimeError, OSError) as error:
        size = sum(getattr(batch, name).nbytes for name in TENSORS)
        return _too_little(f"a batch of {size / _MB:.1f} MB does not fit: {error}")
    return batch


def _too_little(what: str) -> RunError:
    """The error that names shared memory and the remedies."""
    free, total = _room()
    return RunError(
        f"too little shared memory ({_FOLDER}: {free / _MB:.1f} of {total / _MB:.1f} MB are free), where data workers hand over "
        "their batches: give it more (docker run --shm-size=8g, or --ipc=host), lower data.workers or data.prefetch, or set "
        f"data.workers=0; {what}"
    )


def _room() -> tuple[int, int]:
    """Bytes that are free there, and in all; 0 in all where nothing says how many, or there is no limit."""
    with contextlib.suppress(OSError):
        found = os.statvfs(_FOLDER)
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    return 0, 0
