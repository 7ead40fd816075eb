"""Devices of data sheets, and a CPU that its ranks share."""

from __future__ import annotations

import pytest

from flexiclip.plan.hardware import device_of
from flexiclip.plan.memory import Memory
from flexiclip.plan.states import States

MIB = 1 << 20


def memory(states: States) -> Memory:
    return Memory(states, inputs=0, embeddings=0, activations=0, peak=0)


def test_devices_are_those_of_the_data_sheets() -> None:
    h100, a100 = device_of("h100", 8), device_of("a100", 8)
    assert (h100.peak("bf16"), h100.peak("fp32"), h100.memory, h100.memory_bandwidth) == (989e12, 67e12, 80e9, 3.35e12)
    assert (a100.peak("bf16"), a100.peak("fp32"), a100.memory, a100.memory_bandwidth) == (312e12, 19.5e12, 80e9, 2.039e12)
    assert [(d.node_link, d.network_link, d.host_link) for d in (h100, a100)] == [(450e9, 50e9, 50e9), (300e9, 25e9, 25e9)]
    assert device_of("h100", 8, 0.55).mfu == 0.55
    assert h100.mfu == a100.mfu == 0.4


def test_a_cpu_is_shared_by_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every figure of one rank is an even share of what is measured."""
    from flexiclip.plan import hardware

    monkeypatch.setattr(hardware, "_fastest", lambda run, repeats=4: 1e-3)
    one, four = (device_of("cpu", ranks) for ranks in (1, 4))
    assert one.fp32_flops == one.bf16_flops == 2 * 768**3 / 1e-3
    assert one.memory_bandwidth == one.node_link == one.host_link == 2 * 64 * MIB / 1e-3
    for name in ("bf16_flops", "fp32_flops", "memory", "memory_bandwidth", "node_link", "network_link", "host_link"):
        assert getattr(four, name) == getattr(one, name) / 4
