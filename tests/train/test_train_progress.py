"""What a log shows of a run: the running loss of each length, the share of waiting, the time left."""

from __future__ import annotations

import math
import time

import pytest

from flexiclip.train.logs import Progress

ROW = {"step": 30, "loss": 1.23456, "seqhw": 4, "lr": 2e-3, "images_per_s": 99.6, "data_s": 0.5, "step_s": 2.0}


def test_progress_keeps_a_running_mean_of_each_length_without_skipped_steps() -> None:
    progress = Progress(total=10, start=0, main=True)
    for seqhw, loss in ((3, 2.0), (4, 7.0), (3, 1.0), (3, math.nan), (3, math.inf), (3, 3.0)):
        progress.seen(seqhw, loss)
    assert progress.by_length == {3: pytest.approx(0.9 * (0.9 * 2 + 0.1 * 1) + 0.1 * 3), 4: 7.0}


def test_progress_shows_the_time_left_from_the_steps_of_this_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twenty steps since step 10 in 40 s: the 4,000 that are left take 8,000 s."""
    progress = Progress(total=4030, start=10, main=True)
    monkeypatch.setattr(time, "monotonic", lambda: progress.began + 40)
    progress.show(ROW)
    said = "step 30/4030  loss 1.2346  seqhw 4  lr 2.00e-03  100 images/s  data wait 25%  left 2:13:20\n"
    assert capsys.readouterr().err == said


def test_progress_is_silent_but_on_the_main_rank(capsys: pytest.CaptureFixture[str]) -> None:
    for main, lines in ((False, 0), (True, 2)):
        progress = Progress(total=40, start=0, main=main)
        progress.say("[a] line")
        progress.show(ROW)
        progress.close()
        assert len(capsys.readouterr().err.splitlines()) == lines
