"""train.precision: what `auto` comes to on this machine, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from launch import Trained

from flexiclip.train.engines import precision
from flexiclip.train.processes.ranks import Ranks

ALONE = Ranks(rank=0, world=1, local_rank=0, device=torch.device("cpu"))


def test_bf16_is_the_hardwares_own_from_avx512_on() -> None:
    has = precision.has_bf16(torch.device("cpu"))
    assert has == {"AVX2": False, "AVX512": True}.get(torch.backends.cpu.get_cpu_capability(), has)


@pytest.mark.parametrize("native", [True, False])
def test_what_each_setting_comes_to(native: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda device: native)
    assert precision.uses_bf16("auto", ALONE) is native
    assert ("auto: bf16" if native else "auto: fp32") in capsys.readouterr().err
    assert precision.uses_bf16("bf16", ALONE) is True
    assert ("fp32 (or auto)" in capsys.readouterr().err) is not native
    assert precision.uses_bf16("fp32", ALONE) is False
    assert capsys.readouterr().err == ""


def test_auto_trains_as_the_setting_that_it_comes_to(fit: Callable[..., Trained]) -> None:
    named = "bf16" if precision.has_bf16(torch.device("cpu")) else "fp32"
    auto, same = (fit(1, f"train.precision={each}") for each in ("auto", named))
    assert auto.column("loss").tolist() == same.column("loss").tolist()
