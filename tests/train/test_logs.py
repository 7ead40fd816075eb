"""The files that a run writes row by row, what its log shows, and how many samples that cannot be used are too many."""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from flexiclip.errors import RunError, UserError
from flexiclip.train.logs import BadShare, JsonLines, Metrics, Progress, read_lines


def test_json_lines_drop_what_lies_beyond_the_step_and_a_line_that_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "loss": step / 3} for step in (1, 2, 3, 4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 5, "lo')
    lines = JsonLines(path, resume_step=3)
    assert read_lines(path) == rows[:3]
    lines.write({"step": 4, "loss": 9.0})
    assert path.read_text().splitlines()[3:] == ['{"step": 4, "loss": 9.0}'], "it is in the file before the file is closed"
    lines.close()
    JsonLines(path).close()
    assert read_lines(path) == [*rows[:3], {"step": 4, "loss": 9.0}], "without a step nothing is dropped"


class Half(io.RawIOBase):
    """A disk that is full in the middle of a line."""

    def write(self, data: object) -> int:
        return len(bytes(data)) - 1  # type: ignore[call-overload]


def test_json_lines_on_a_full_disk_end_in_one_line(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl")
    for full in (open("/dev/full", "ab", buffering=0), Half()):  # noqa: SIM115
        lines._file.close()
        lines._file = full  # type: ignore[assignment]
        with pytest.raises(
            RunError, match=r"metrics\.jsonl cannot be written: No space left on device: the same command goes on"
        ):
            lines.write({"step": 1})
    lines.close()


def test_metrics_name_each_bad_sample_once_over_all_starts(tmp_path: Path) -> None:
    one, other = ({"shard": shard, "key": "s1", "reason": "no image"} for shard in ("a.tar", "b.tar"))
    for _ in range(2):
        metrics = Metrics(tmp_path, 0, log_samples=False)
        metrics.log_bad([one, other, one])
        metrics.log_bad([{**one, "reason": "another one"}])
        metrics.close()
    assert read_lines(tmp_path / "bad_samples.jsonl") == [one, other]
    assert not (tmp_path / "samples.jsonl").exists()


class Drawn:
    """A tracker that keeps what it is given."""

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def log(self, step: int, curves: Mapping[str, float]) -> None:
        self.points.append((step, dict(curves)))

    def close(self) -> None:
        self.closed = True


def test_metrics_draw_each_length_and_write_what_is_not_finite_as_null(tmp_path: Path) -> None:
    drawn = Drawn()
    metrics = Metrics(tmp_path, 0, log_samples=True, trackers=[drawn])
    metrics.log({"step": 1, "seqhw": 4, "loss": 2.5, "grad_norm": 1.0, "logit_scale": math.log(12.5)})
    metrics.log({"step": 2, "seqhw": 6, "loss": math.nan, "grad_norm": math.inf})
    metrics.log_samples(1, 4, ["a.tar/s1"])
    metrics.log_evaluation(2, {"toy/retrieval/acc/seqhw=4": 0.25})
    metrics.close()
    assert read_lines(tmp_path / "metrics.jsonl")[0]["logit_scale"] == math.log(12.5), "the file keeps the logarithm"
    assert read_lines(tmp_path / "metrics.jsonl")[1] == {"step": 2, "seqhw": 6, "loss": None, "grad_norm": None}
    assert json.loads((tmp_path / "samples.jsonl").read_text()) == {"step": 1, "seqhw": 4, "samples": ["a.tar/s1"]}
    assert read_lines(tmp_path / "eval.jsonl") == [{"step": 2, "toy/retrieval/acc/seqhw=4": 0.25}]
    assert Metrics(tmp_path, 2, log_samples=False).evaluated == 2
    loss = {"train/loss": 2.5, "train/loss_at_seqhw=04": 2.5}
    assert drawn.points == [
        (1, {**loss, "schedule/seqhw": 4, "model/grad_norm": 1.0, "model/logit_scale": pytest.approx(12.5)}),
        (2, {"schedule/seqhw": 6}),
        (2, {"eval/toy/acc/seqhw=04": 0.25}),
    ]
    assert drawn.closed


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


def screen(output: str, columns: int) -> list[str]:
    """The lines that a terminal of that width shows after this output."""
    cells: dict[tuple[int, int], str] = {}
    row = column = 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|.|\n|\r", output):
        if part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
        elif part.startswith("\x1b["):
            if part.endswith("A"):
                row -= int(part[2:-1] or 1)
            elif part.endswith("K"):
                cells = {at: text for at, text in cells.items() if at[0] != row}
        else:
            if column == columns:
                row, column = row + 1, 0
            cells[row, column] = part
            column += 1
    last = max((at[0] for at in cells), default=-1)
    return ["".join(cells.get((line, at), " ") for at in range(columns)).rstrip() for line in range(last + 1)]


SHOWN = """
import sys
from flexiclip.train.logs import Progress
progress = Progress(375, 0, True)
for step in (60, 70):
    row = {"step": step, "loss": 2.5, "seqhw": 4, "lr": 1e-3, "logit_scale": 2.0}
    row |= {"images_per_s": 9.0, "data_s": 0.1, "step_s": 1.0}
    progress.seen(4, 2.5)
    progress.show(row)
    progress._live.refresh()
sys.stderr.write("\\x1e")
sys.stderr.flush()
sys.stdin.readline()
progress.say("stopped by a signal at step 70")
progress.show({**row, "step": 71})
progress.close()
"""


def test_the_panel_leaves_no_piece_behind_after_ctrl_c() -> None:
    """On a terminal of 80 columns, which echoes ^C behind the panel's last line; the scale is shown as a factor."""
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1", "COLUMNS": "80", "LINES": "24"}
    shown = [sys.executable, "-c", SHOWN]
    process = subprocess.Popen(shown, stdin=subprocess.PIPE, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    assert process.stdin is not None
    output, typed = "", False
    with suppress(OSError):  # the process has closed its side
        while data := os.read(main, 1 << 16):
            output += data.decode()
            if "\x1e" in output and not typed:
                typed = True
                output += "^C"  # the echo of the terminal, which stands where the panel ended
                process.stdin.write(b"\n")
                process.stdin.close()
    assert process.wait(60) == 0
    lines = screen(output.replace("\x1e", ""), 80)
    assert sum("step 7" in line and "╭" in line for line in lines) == 1, "\n".join(lines)
    assert any(line.startswith("stopped by a signal at step 70") for line in lines)
    assert "logit scale 7.39" in output, "e to the power of 2"


def bad(count: int, reason: str = "no image: none of jpg", shard: str = "a.tar") -> list[dict[str, str]]:
    return [{"shard": shard, "key": f"s{n}", "reason": reason} for n in range(count)]


@pytest.mark.parametrize(
    ("limit", "unusable", "good", "ends"),
    [
        (0.1, 7, 0, False),  # fewer than eight end no run
        (0.0, 7, 10, False),
        (0.0, 8, 10**6, True),
        (0.1, 8, 72, False),  # 8 of 80 is a tenth, and not above it
        (0.1, 8, 71, True),
        (0.1, 10, 90, False),
        (1.0, 1000, 0, False),
    ],
)
def test_bad_share_compares_the_unusable_with_all_that_were_read(limit: float, unusable: int, good: int, ends: bool) -> None:
    share = BadShare(limit)
    share.add(bad(unusable))
    if not ends:
        share.check(good)
        return
    with pytest.raises(
        UserError, match=rf"^{unusable} of {good + unusable} samples cannot be used, more than data\.max_bad_frac"
    ):
        share.check(good)


def test_bad_share_names_the_three_most_frequent_reasons_with_an_example() -> None:
    share = BadShare(0.1)
    share.add(bad(2, "empty caption", "first.tar"))
    share.add(bad(4, "image cannot be decoded: truncated", "second.tar") + bad(3, "image cannot be decoded: other", "third.tar"))
    share.add(bad(3, "no image: none of jpg", "fourth.tar") + bad(1, "rare", "fifth.tar"))
    with pytest.raises(UserError) as caught:
        share.check(0)
    reasons = (
        "7 x image cannot be decoded, as in second.tar s0; 3 x no image, as in fourth.tar s0; "
        "2 x empty caption, as in first.tar s0. "
    )
    assert reasons in str(caught.value)
    assert "fifth.tar" not in str(caught.value)
