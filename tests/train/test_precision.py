"""train.precision: what `auto` comes to on this machine, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kit.launch import Trained, run_ranks

from flexiclip.train import engine as precision
from flexiclip.train.ranks import Ranks, joined_ranks

ALONE = Ranks(rank=0, world=1, local_rank=0, device=torch.device("cpu"))


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the kernel says what the processor has on Linux only")
def test_bf16_is_the_hardwares_own_from_avx512_on() -> None:
    """oneDNN multiplies bfloat16 where the processor has AVX-512 with BW, VL and DQ, or on Arm its own instructions."""
    lines = [
        line.split(":")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Features"))
    ]
    flags = set(lines[0].split())
    assert precision.has_bf16(torch.device("cpu")) == ({"avx512bw", "avx512vl", "avx512dq"} <= flags or "bf16" in flags)


def says_of_itself(native_rank: int) -> None:
    """In a rank: only one of them has the hardware."""
    with joined_ranks(process_group=False, threads=1) as ranks:
        precision.has_bf16 = lambda device: ranks.rank == native_rank  # type: ignore[assignment]
        assert precision.uses_bf16("auto", ranks) is False
        assert precision.uses_bf16("bf16", ranks) is True
        precision.has_bf16 = lambda device: True  # type: ignore[assignment]
        assert precision.uses_bf16("auto", ranks) is True


@pytest.mark.parametrize("native_rank", [0, 1])
def test_auto_is_fp32_on_all_ranks_where_one_has_no_bf16(tmp_path: Path, native_rank: int) -> None:
    assert run_ranks(2, tmp_path / "log", says_of_itself, native_rank) == [0, 0], (tmp_path / "log.1").read_text()
    assert "train.precision=auto: fp32, as the hardware has no bf16 arithmetic" in (tmp_path / "log.0").read_text()


@pytest.mark.parametrize("native", [True, False])
def test_what_each_setting_comes_to(native: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda device: native)
    assert precision.uses_bf16("auto", ALONE) is native
    assert ("auto: bf16" if native else "auto: fp32") in capsys.readouterr().err
    assert precision.uses_bf16("bf16", ALONE) is True
    assert ("fp32 (or auto)" in capsys.readouterr().err) is not native
    assert precision.uses_bf16("fp32", ALONE) is False
    assert capsys.readouterr().err == ""


def test_auto_trains_as_the_setting_that_it_comes_to(fit: Callable[..., Trained], reference: Trained) -> None:
    """The recipe says fp32."""
    same = fit(1, "train.precision=bf16") if precision.has_bf16(torch.device("cpu")) else reference
    assert fit(1, "train.precision=auto").column("loss").tolist() == same.column("loss").tolist()
