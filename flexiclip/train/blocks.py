"""How the blocks of a model that is built run while it trains: compiled, or with their activations recomputed, or both.

A block's `forward` is replaced on the instance: towers of any library are treated alike, parameters keep their names, and neither
the model's config nor its saved state knows of it. The hooks by which ZeRO-3 gathers a block's parameters stay outside.

Memory that a step on a CPU frees, and the next one asks for again, stays with the process (glibc).

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
import struct
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from flexiclip.config import Config
from flexiclip.errors import UserError
from flexiclip.models.locks import blocks_of

GRAPHS = 64
"""Graphs that one kind of block may need: for each tower, all tokens or one, with gradients, autocast, many rows or one."""

_WRITTEN_S = 3.0
"""Seconds without a change after which a file of torch's cache is not being written any more."""


def prepare_blocks(towers: list[nn.Module], config: Config, device: torch.device) -> None:
    """Compile and recompute the blocks of the towers as `train.compile` and `train.activation_checkpointing` say.

    Blocks that are frozen are compiled too, and never recomputed. Raises UserError for what the user must mend.
    """
    if config.train.compile:
        check_compiler(device)
        for tower in towers:
            compile_blocks(tower)
    if config.train.activation_checkpointing:
        for tower in towers:
            recompute_blocks(tower)


def towers_blocks(tower: nn.Module) -> list[nn.Module]:
    """The tower's blocks. Raises UserError for a tower that has none."""
    blocks = blocks_of(tower)
    if not blocks:
        raise UserError(
            f"{type(tower).__name__} has no list of blocks: set train.activation_checkpointing=false and train.compile=false"
        )
    return blocks


def recompute_blocks(tower: nn.Module) -> None:
    """Keep only the input of each block that trains, and compute the rest again in backward, under the same random state.

    Compile the blocks first, if at all: the compiled forward is then what is recomputed. Raises UserError for a tower without
    blocks.
    """
    for block in towers_blocks(tower):
        if any(p.requires_grad for p in block.parameters()):
            _replace(block, partial(_recomputed, _function(block)))


def _recomputed(forward: Callable[..., Any], block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(block, *args, **kwargs)
    return checkpoint(forward, block, *args, use_reentrant=False, **kwargs)


def compile_blocks(tower: nn.Module, backend: str = "inductor") -> None:
    """Let torch.compile make one graph of each block for all lengths and batch sizes, shared by blocks of one shape.

    The first step that meets a kind of graph takes its time for it. Raises UserError for a tower without blocks.
    """
    import torch._dynamo
    import torch.fx.experimental._config

    torch._dynamo.config.cache_size_limit = max(GRAPHS, torch._dynamo.config.cache_size_limit)  # beyond it blocks would run eager
    torch._dynamo.config.optimize_ddp = False  # splits graphs by DDP's buckets; a block is less than one
    torch.fx.experimental._config.use_duck_shape = False  # a batch as large as its length is no reason for another graph
    compiled: dict[type, Callable[..., Any]] = {}
    for block in towers_blocks(tower):
        kind = type(block)
        if kind not in compiled:
            compiled[kind] = torch.compile(_function(block), dynamic=True, backend=backend)
        _replace(block, compiled[kind])


def check_compiler(device: torch.device) -> None:
    """Compile one addition. Raises UserError where the compiler that torch.compile needs is missing or does not work."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    cache = Path(cache_dir())
    remove_cut_off(cache)
    try:
        torch.compile(_add_one)(torch.ones(2, device=device))
    except Exception as error:  # whatever compilers, drivers and headers may do
        raise UserError(
            f"train.compile: torch.compile does not work here ({_first_line(error)}): install a C++ compiler "
            f"(apt install g++ python3-dev), delete {cache}, or set train.compile=false"
        ) from None


def remove_cut_off(cache: Path) -> list[Path]:
    """Remove the libraries in torch's cache that a kill has cut off: torch would load them for ever, and builds what is missing.

    One that is being written has changed in the last seconds, and stays. Returns what was removed.
    """
    removed = []
    for path in cache.rglob("*.so"):
        try:
            if time.time() - path.stat().st_mtime > _WRITTEN_S and not _is_whole(path):
                path.unlink()
                removed.append(path)
        except OSError:  # another process has removed it, or it is somebody else's
            continue
    return removed


def _is_whole(library: Path) -> bool:
    """Whether a shared library has its end: in an ELF file of 64 bits the table of sections comes last. Others count as whole."""
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


def _add_one(x: torch.Tensor) -> torch.Tensor:
    return x + 1


def _first_line(error: BaseException) -> str:
    """What went wrong; torch's "backend='inductor' raised:" comes before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.rstrip().endswith("raised:")]
    return lines[0] if lines else type(error).__name__


def _function(block: nn.Module) -> Callable[..., Any]:
    """The block's forward as a function whose first argument is the block."""
    bound: Any = block.forward
    return bound.__func__  # type: ignore[no-any-return]


def _replace(block: nn.Module, forward: Callable[..., Any]) -> None:
    block.forward = MethodType(forward, block)  # a bound method, which deepcopy binds to the copy


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
