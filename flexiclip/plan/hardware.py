"""The devices that a plan knows, with the dense peaks of NVIDIA's data sheets and the links of usual servers.

h100  data sheet of SXM 80 GB: 989 TFLOP/s bf16, 67 fp32, 3.35 TB/s, NVLink 900 GB/s both ways; DGX H100: 400 Gb/s per GPU
a100  data sheet of SXM 80 GB: 312 TFLOP/s bf16, 19.5 fp32, 2.04 TB/s, NVLink 600 GB/s both ways; DGX A100: 200 Gb/s per GPU
cpu   this machine, which its ranks share: peaks and bandwidth are measured when the plan is made; hosts have 10 Gb/s Ethernet

fp32 means fp32, not TF32: torch uses TF32 in matrix products only if it is told to, and nothing here does that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from flexiclip.errors import UserError

GB = 10**9


@dataclass(frozen=True)
class Device:
    """The hardware of one rank, in FLOP/s, bytes and bytes/s. Links count in one direction, as the share of the rank."""

    name: str
    bf16_flops: float
    fp32_flops: float
    memory: float
    memory_bandwidth: float
    node_link: float
    network_link: float
    host_link: float  # PCIe, for offloaded states
    mfu: float  # share of the peak that training is assumed to reach, unless --mfu is given
    source: str

    def precision(self, asked: Literal["fp32", "bf16", "auto"]) -> Literal["fp32", "bf16"]:
        """The precision that `train.precision` stands for. auto is the faster one."""
        if asked != "auto":
            return asked
        return "bf16" if self.bf16_flops > self.fp32_flops else "fp32"

    def peak(self, precision: str) -> float:
        """FLOP/s of matrix products at a precision."""
        return self.bf16_flops if precision == "bf16" else self.fp32_flops


USABLE_MEMORY = 0.9
"""Usable share of the memory. The driver, the communication library and gaps between the allocator's blocks take the rest."""

LINK_EFFICIENCY = 0.8
"""Share of a link's bandwidth that large messages reach, about what NCCL's own tests show (nccl-tests, busbw)."""

_GPUS = {
    "h100": Device(
        "h100", 989e12, 67e12, 80 * GB, 3.35e12, 450 * GB, 50 * GB, 50 * GB, 0.4, "NVIDIA H100 SXM data sheet, DGX H100"
    ),
    "a100": Device(
        "a100", 312e12, 19.5e12, 80 * GB, 2.039e12, 300 * GB, 25 * GB, 25 * GB, 0.4, "NVIDIA A100 SXM data sheet, DGX A100"
    ),
}
DEVICES = (*_GPUS, "cpu")


def device_of(name: str, ranks_per_node: int, mfu: float | None = None) -> Device:
    """The device of that name; for a CPU, the share of one rank. UserError for an unknown name or an mfu outside (0, 1]."""
    if mfu is not None and not 0 < mfu <= 1:
        raise UserError(
            f"--mfu {mfu:g}: the share of peak FLOP/s that training reaches lies above 0 and up to 1, for example 0.4"
        )
    if name not in DEVICES:
        raise UserError(f"--device {name}: choose one of {', '.join(DEVICES)}")
    device = _GPUS[name] if name in _GPUS else _this_machine(ranks_per_node)
    return device if mfu is None else replace(device, mfu=mfu)


def _this_machine(ranks: int) -> Device:
    source = f"measured: {torch.get_num_threads()} threads, a matrix product of 768 and a copy of 64 MB"
    bandwidth = _copy_bandwidth()
    return Device(
        name="cpu",
        bf16_flops=_matmul_flops(torch.bfloat16) / ranks,
        fp32_flops=_matmul_flops(torch.float32) / ranks,
        memory=machine_memory() / ranks,
        memory_bandwidth=bandwidth / ranks,
        node_link=bandwidth / ranks,
        network_link=1.25 * GB / ranks,
        host_link=bandwidth / ranks,
        mfu=0.6,
        source=source,
    )


_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def machine_memory() -> int:
    """Return the memory of this machine in bytes, or that of the container if it has less."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _LIMITS:
        with suppress(OSError, ValueError):  # there is no such file, or it says `max`
            found.append(int(Path(path).read_text()))
    return min(found)


def _matmul_flops(dtype: torch.dtype, side: int = 768) -> float:
    a, b = (torch.ones(side, side, dtype=dtype) for _ in range(2))
    return 2 * side**3 / _fastest(lambda: torch.mm(a, b))


def _copy_bandwidth(size: int = 1 << 26) -> float:
    source, target = torch.ones(size, dtype=torch.uint8), torch.empty(size, dtype=torch.uint8)
    return 2 * size / _fastest(lambda: target.copy_(source))


def _fastest(run: Callable[[], object], repeats: int = 4) -> float:
    """Seconds of the fastest of a few runs, because disturbances only make a run slower."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
