"""How the blocks of a model run while it trains: compiled, or with their activations recomputed, or both.

The keys are `train.compile` and `train.activation_checkpointing`.

A block's `forward` is replaced on the instance. So towers of any library are treated alike, parameters keep their names, and the
model's config and its saved state do not change. The hooks with which ZeRO-3 gathers a block's parameters remain outside of the
replaced function.

The file also holds `keep_freed_memory`, a setting of glibc's malloc that makes steps on CPUs faster.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import struct
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import MethodType

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from flexiclip.config import TrainConfig
from flexiclip.errors import UserError
from flexiclip.models.locks import blocks_of

GRAPHS = 64
"""Number of graphs that one kind of block may need.

Graphs differ by the tower, by whether all tokens or only one are computed, by gradients, by autocast, and by many rows or one.
"""

_WRITTEN_S = 3.0
"""After this many seconds without a change, a file of torch's cache counts as completely written."""


def prepare_blocks(towers: list[nn.Module], train: TrainConfig, device: torch.device) -> None:
    """Compile and recompute the blocks of the towers as `train.compile` and `train.activation_checkpointing` say.

    Frozen blocks are compiled too, but never recomputed. Raises UserError if the compiler does not work or a tower has no blocks.
    """
    if train.compile:
        check_compiler(device)
        for tower in towers:
            compile_blocks(tower)
    if train.activation_checkpointing:
        for tower in towers:
            recompute_blocks(tower)


def towers_blocks(tower: nn.Module) -> list[nn.Module]:
    """Return the tower's blocks. Raises UserError if it has none."""
    blocks = blocks_of(tower)
    if not blocks:
        raise UserError(
            f"{type(tower).__name__} has no list of blocks: set train.activation_checkpointing=false and train.compile=false"
        )
    return blocks


def recompute_blocks(tower: nn.Module) -> None:
    """Keep only the input of each block that trains, and recompute the rest in the backward pass under the same random state.

    If blocks are also compiled, compile them first, so that the compiled forward is what is recomputed. Raises UserError if the
    tower has no blocks.
    """
    for block in towers_blocks(tower):
        if any(p.requires_grad for p in block.parameters()):
            _replace(block, partial(_recomputed, _function(block)))


def _recomputed(forward: Callable[..., object], block: nn.Module, *args: object, **kwargs: object) -> object:
    if not torch.is_grad_enabled():
        return forward(block, *args, **kwargs)
    return checkpoint(partial(forward, **kwargs), block, *args, use_reentrant=False)


def compile_blocks(tower: nn.Module, backend: str = "inductor") -> None:
    """Compile each block with torch.compile, as one graph for all lengths and batch sizes that blocks of the same shape share.

    The first step that needs a new graph is slow, because it compiles the graph. Raises UserError if the tower has no blocks.
    """
    import torch._dynamo
    import torch.fx.experimental._config

    torch._dynamo.config.cache_size_limit = max(GRAPHS, torch._dynamo.config.cache_size_limit)  # beyond it, blocks run uncompiled
    torch._dynamo.config.optimize_ddp = False  # it splits graphs at DDP's buckets, but a block is smaller than one
    torch.fx.experimental._config.use_duck_shape = False  # no extra graph when the batch size happens to equal the length
    compiled: dict[type, Callable[..., object]] = {}
    for block in towers_blocks(tower):
        kind = type(block)
        if kind not in compiled:
            compiled[kind] = torch.compile(_function(block), dynamic=True, backend=backend)
        _replace(block, compiled[kind])


def check_compiler(device: torch.device) -> None:
    """Compile one addition. Raises UserError if the compiler that torch.compile needs is missing or does not work."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    cache = Path(cache_dir())
    remove_cut_off(cache)
    try:
        torch.compile(lambda x: x + 1)(torch.ones(2, device=device))
    except Exception as error:  # compilers, drivers and headers fail in many ways
        raise UserError(
            f"train.compile: torch.compile does not work here ({_first_line(error)}): install a C++ compiler "
            f"(apt install g++ python3-dev), delete {cache}, or set train.compile=false"
        ) from None


def remove_cut_off(cache: Path) -> list[Path]:
    """Remove the libraries in torch's cache that are incomplete because a process was killed, and return their paths.

    torch would try to load such a library in every run, but it rebuilds one that is missing. A library that changed in the last
    few seconds may still be being written, and is kept.
    """
    removed = []
    for path in cache.rglob("*.so"):
        try:
            if time.time() - path.stat().st_mtime > _WRITTEN_S and not _is_whole(path):
                path.unlink()
                removed.append(path)
        except OSError:  # another process has removed it, or it belongs to another user
            continue
    return removed


def _is_whole(library: Path) -> bool:
    """Whether a shared library is complete. Only 64-bit ELF files, where the table of sections comes last, can be judged.

    Files in other formats count as complete, unless they begin with zeros only.
    """
    with library.open("rb") as file:
        head = file.read(64)
        size = file.seek(0, os.SEEK_END)
    if head[:4] != b"\x7fELF":
        return any(head)
    if len(head) < 64 or head[4] != 2:
        return len(head) == 64
    order = "<" if head[5] == 1 else ">"
    (start,) = struct.unpack_from(f"{order}Q", head, 40)
    entry, count = struct.unpack_from(f"{order}2H", head, 58)
    return bool(start) and size >= start + entry * count


def _first_line(error: BaseException) -> str:
    """The line of the message that says what went wrong. torch puts "backend='inductor' raised:" before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.rstrip().endswith("raised:")]
    return lines[0] if lines else type(error).__name__


def _function(block: nn.Module) -> Callable[..., object]:
    """Return the block's forward as a function whose first argument is the block."""
    assert isinstance(block.forward, MethodType)
    return block.forward.__func__


def _replace(block: nn.Module, forward: Callable[..., object]) -> None:
    block.forward = MethodType(forward, block)  # deepcopy binds a bound method to the copy


_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of mallopt(3), from malloc.h
_ENVIRONMENT = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")


def keep_freed_memory() -> bool:
    """Make malloc keep the memory that a step frees, for the next step. Returns whether the setting was made.

    Activations of a large batch exceed glibc's largest threshold (32 MB), above which each allocation is mapped separately and
    returned to the system when it is freed. The kernel then has to clear the pages again in every step. With this setting every
    step uses the same memory, and the process stays as large as its largest step, which
    scripts/bench/subjects/training_step.py measures.

    Forked children are not affected. Returns False if the C library is not glibc, or if environment variables configure malloc.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _ENVIRONMENT):
        return False
    if not _set(_MMAP_MAX, 0) or not _set(_TRIM_THRESHOLD, -1):  # -1: never
        return False
    _give_back_in_children()
    return True


def give_back_freed_memory() -> bool:
    """Undo `keep_freed_memory`, with the thresholds that glibc reaches by itself after large arrays were freed.

    Returns whether the setting was made.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    most = 32 * 2**20  # DEFAULT_MMAP_THRESHOLD_MAX; glibc trims above twice this size
    return _set(_MMAP_MAX, 65536) and _set(_MMAP_THRESHOLD, most) and _set(_TRIM_THRESHOLD, 2 * most)


@functools.cache
def _give_back_in_children() -> None:
    """Restore the default in forked children, so that a data worker does not stay large after one huge picture.

    The handler is registered only once, because it cannot be removed.
    """
    os.register_at_fork(after_in_child=give_back_freed_memory)


def _set(parameter: int, value: int) -> bool:
    return bool(ctypes.CDLL(None).mallopt(parameter, value))
