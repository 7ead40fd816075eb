"""What the ranks tell one another: flags, items in order, the result or the mistake of those that work."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from kit.launch import run_ranks

from flexiclip.config import Config
from flexiclip.errors import UserError
from flexiclip.train import ranks as ranks_module
from flexiclip.train.ranks import TIMEOUT, Ranks, joined_ranks
from flexiclip.train.resume import shared


def tell(ranks: Ranks) -> None:
    """What each of three ranks must hear."""
    assert ranks.world == 3
    assert ranks.main is (ranks.rank == 0)
    assert ranks.agree(ranks.rank == 2, False, True) == [True, False, True]
    assert ranks.agree(False) == [False]
    assert ranks.collect([(ranks.rank, n) for n in range(ranks.rank)]) == [(1, 0), (2, 0), (2, 1)]
    ranks.say(f"said by {ranks.rank}")

    began = time.monotonic()
    if ranks.rank == 1:
        time.sleep(0.3)
    ranks.barrier()
    assert time.monotonic() - began >= 0.29, "nobody passes a barrier before the last one"

    assert shared(ranks, ranks.rank > 0, lambda: f"of rank {ranks.rank}") == "of rank 1", "the first that works, on every rank"

    def fail() -> str:
        raise UserError(f"no room on rank {ranks.rank}")

    with pytest.raises(UserError, match=r"^no room on rank 2$"):
        shared(ranks, ranks.rank == 2, fail)


def three() -> int:
    with joined_ranks(False, 1) as ranks:
        tell(ranks)
    return 0


def test_ranks_agree_collect_share_and_wait(tmp_path: Path) -> None:
    codes = run_ranks(3, tmp_path / "log", three)
    said = [Path(f"{tmp_path / 'log'}.{rank}").read_text() for rank in range(3)]
    assert codes == [0, 0, 0], said
    assert said == ["said by 0\n", "", ""]


def test_a_single_process_agrees_with_itself(capsys: pytest.CaptureFixture[str]) -> None:
    alone = Ranks(rank=0, world=1, local_rank=0, device=torch.device("cpu"))
    assert alone.agree(True, False) == [True, False]
    assert alone.collect([3, 1]) == [3, 1]
    assert shared(alone, True, lambda: "done") == "done"
    with pytest.raises(UserError, match="no room"):
        shared(alone, True, lambda: (_ for _ in ()).throw(UserError("no room")))
    alone.say("a line")
    assert capsys.readouterr().err == "a line\n"


def test_threads_are_the_cores_over_the_local_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not over those of other hosts; and a number that the recipe gives is taken."""
    before = torch.get_num_threads()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    try:
        for name, local, threads, expected in (
            ("LOCAL_WORLD_SIZE", "2", None, 3),
            ("LOCAL_SIZE", "3", None, 2),  # as DeepSpeed says it
            ("LOCAL_WORLD_SIZE", "16", None, 1),
            ("LOCAL_WORLD_SIZE", "2", 2, 2),
        ):
            monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
            monkeypatch.setenv(name, local)
            assert ranks_module._device(0, 32, threads) == torch.device("cpu")
            assert torch.get_num_threads() == expected, (name, local, threads)
    finally:
        torch.set_num_threads(before)


def test_how_long_ranks_wait_is_what_the_page_says() -> None:
    """docs/guides/multinode.md."""
    assert timedelta(minutes=30) == TIMEOUT
    assert Config().train.rank_timeout_s == 40
