"""A feed that gets no batch: what it says, when it gives up, and that a signal ends the wait. (Whole runs: test_processes.py.)"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from torch.utils.data import Dataset

from flexiclip.data.loader import Batches, _batches
from flexiclip.data.worker_watch import Notes
from flexiclip.errors import RunError, UserError
from flexiclip.train import feed as stalls
from flexiclip.train.feed import Feed
from flexiclip.train.signals import StopSignal


class Slow(Dataset[object]):
    """Hands out its numbers; the reads from `slow_from` on wait until they may go on."""

    def __init__(self, slow_from: int) -> None:
        self.slow_from, self.go_on = slow_from, threading.Event()

    def watched_by(self, notes: Notes) -> None:
        self.notes = notes

    def __getitem__(self, step: int) -> object:
        self.notes("reading", "a.tar", f"s{step}")
        if step >= self.slow_from:
            self.go_on.wait(60)
        return UserError("no caption in a row") if step == 9 else step


@pytest.fixture
def slow() -> Iterator[tuple[Slow, Batches]]:
    dataset = Slow(slow_from=2)
    yield dataset, _batches(dataset, range(10), workers=0, prefetch=4)
    dataset.go_on.set()


def test_a_feed_without_a_batch_reports_every_stall_s_and_gives_up_after_ten_times(
    slow: tuple[Slow, Batches], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stalls, "_POLL_S", 0.01)
    began = time.monotonic()
    with Feed(slow[1], rank=3, stall_s=0.1, stop=StopSignal()) as feed:
        assert [feed.take(5), feed.take(6)] == [0, 1], "the batches that come are handed on"
        with pytest.raises(
            RunError, match=r"^rank 3 has no batch for step 7 after 1 s \(data\.stall_s=0\.1\): worker 0 .*s2 for 1 s"
        ):
            feed.take(7)
        assert 1 <= time.monotonic() - began < 10
        slow[0].go_on.set()
    reports = capsys.readouterr().err.splitlines()
    assert 5 <= len(reports) <= 9, "one every tenth of a second, but for those that a busy machine left out"
    assert all("rank 3 has no batch for step 7 after " in line and ": reading a.tar s2 for" in line for line in reports)


def test_a_feed_that_waits_obeys_a_signal(slow: tuple[Slow, Batches]) -> None:
    stop = StopSignal()
    with Feed(slow[1], rank=0, stall_s=30.0, stop=stop) as feed:
        assert feed.take(0) == 0
        assert feed.take(1) == 1
        threading.Timer(0.2, lambda: setattr(stop, "asked", True)).start()
        began = time.monotonic()
        assert feed.take(2) is None
        assert feed.take(3) is None, "nothing is asked for any more"
        assert time.monotonic() - began < 10
        slow[0].go_on.set()


def test_a_feed_raises_what_the_loader_raises(slow: tuple[Slow, Batches]) -> None:
    slow[0].go_on.set()
    with Feed(slow[1], rank=0, stall_s=30.0, stop=StopSignal()) as feed:
        assert [feed.take(step) for step in range(9)] == list(range(9))
        with pytest.raises(UserError, match="no caption in a row"):
            feed.take(9)
