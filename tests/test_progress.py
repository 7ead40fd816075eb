"""Progress: the batches pass unchanged, a log gets whole lines, a terminal a bar that counts to the end."""

from __future__ import annotations

import os
import pty
import re
import sys
import threading

import pytest
import torch

from flexiclip import progress

BATCHES = [torch.zeros(size, 3) for size in (4, 4, 0, 2)]


def test_a_log_gets_lines_that_count(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    passed = list(progress.watch("runs/x · toys")(iter(BATCHES), 10))
    assert [id(batch) for batch in passed] == [id(batch) for batch in BATCHES]
    lines = capsys.readouterr().err.splitlines()
    assert [re.sub(r", \S+ images/s, \S+ s left", "", line) for line in lines] == [
        f"runs/x · toys: {done} of 10 images" for done in (4, 8, 8, 10)
    ]


def test_what_is_counted_has_its_name(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    list(progress.watch("runs/x · toys", "texts")([["a", "b"], ["c"]], 3))
    lines = capsys.readouterr().err.splitlines()
    assert [re.sub(r", \S+ texts/s, \S+ s left", "", line) for line in lines] == [
        f"runs/x · toys: {n} of 3 texts" for n in (2, 3)
    ]


def test_a_pass_over_shards_logs_what_is_done(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([10.0, 14.0, 15.0, 19.0])  # at the start, and when each shard is done
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    with caplog.at_level("INFO", logger="flexiclip"):
        assert list(progress.progress("abc", 3, "indexing shards")) == ["a", "b", "c"]
    assert [record.message for record in caplog.records] == ["indexing shards: 2/3, 2 s left"]  # 2.5 s, rounded to even


def test_quick_work_and_other_ranks_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(list(progress.watch("runs/x · toys")(iter(BATCHES), 10))) == 4
    assert len(list(progress.silent(iter(BATCHES), 10))) == 4
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        while True:
            try:
                shown.append(os.read(leader, 65536))
            except OSError:  # the other end is closed
                return

    reader = threading.Thread(target=read)
    reader.start()
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(follower, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert len(list(progress.watch("runs/[x] · toys")(iter(BATCHES), 10))) == 4
    reader.join(60)
    os.close(leader)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(shown).decode())
    assert "runs/[x] · toys" in text
    assert "10/10" in text
    assert "images/s" in text
