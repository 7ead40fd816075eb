"""What the terminal shows of a report, at several widths: whole numbers, marked bests, aligned choices, and whole words."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios
from dataclasses import replace
from pathlib import Path

import pytest
from flexiclip_eval.report.table import Report
from flexiclip_eval.report.terminal import print_report
from flexiclip_eval.tradeoffs import choose, parse_budget
from kit.reports import full_report, small_report


def shown(report: Report, width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    print_report(report)
    return capsys.readouterr().out.splitlines()


def _with_errors(report: Report) -> Report:
    report.rows = [replace(row, standard_errors=dict.fromkeys(row.metrics, 0.0312)) for row in report.rows]
    return report


@pytest.mark.parametrize("width", [60, 80, 140, 200])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_cut(
    width: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = _with_errors(full_report(tmp_path)[0])
    report.models = [report.models[0], replace(report.models[1], pretrained="runs/fixed")]
    report.rows = [row if "fixed" not in row.pretrained else replace(row, pretrained="runs/fixed") for row in report.rows]
    report.choices = choose(report.rows, budget=parse_budget("0.1 GFLOPs"))
    lines = shown(report, width, capsys, monkeypatch)
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    text = "\n".join(lines)
    for row in report.rows:
        for value in row.metrics.values():
            assert re.search(rf"(^|[ *]){100 * value:.1f}% ±3\.1( |$)", text, re.MULTILINE), value
    assert text.count("toys · zeroshot_retrieval · 249 images") == 1
    parts = {60: 3, 80: 2, 140: 1, 200: 1}[width]
    heads = [line.split()[:2] for line in lines].count(["model", "seqhw"])
    assert heads >= parts + 1, "each part of a table repeats the model and the length"


def test_the_table_of_one_model(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(small_report(peak=3.0), 100, capsys, monkeypatch)
    values = ["*100.0%"] * 6  # of 100 %, 50 % and 20 %
    assert next(line for line in lines if line.startswith("     3")).split() == ["3", "9", "20", "0.5", "1,234", *values]
    assert next(line for line in lines if line.startswith("     6")).split()[5:] == ["50.0%"] * 6
    assert lines[-1] == "samples that could not be read and are not counted: 1"
    assert "*: the best of its column. ±: the standard error." in lines


@pytest.mark.parametrize("width", [50, 80, 160])
def test_choices_are_aligned_and_broken_between_words(
    width: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = small_report()
    report.choices = choose(report.rows, budget=parse_budget("0.7 GFLOPs"))
    lines = shown(report, width, capsys, monkeypatch)
    lines = lines[lines.index("Chosen lengths") + 1 :]
    words = {word for choice in report.choices for word in choice.rule.split()} | {"GFLOPs", "acc1", "seqhw"}
    assert words <= {word for line in lines for word in line.split()}
    starts = [line for line in lines if line.startswith("emoji")]
    assert len(starts) == 4
    assert len({line.index("seqhw ") for line in starts}) == 1
    if width == 160:
        assert len({line.index("GFLOPs") for line in starts}) == 1
        assert len({re.search("shortest|best|no eval", line).start() for line in starts}) == 1  # type: ignore[union-attr]


def test_a_real_terminal_shows_the_best_in_bold(tmp_path: Path) -> None:
    """Through a pseudo-terminal of 120 columns, whose width the program asks for itself."""
    code = "import kit.reports; from flexiclip_eval.report.terminal import print_report; print_report(kit.reports.small_report())"
    inside, outside = pty.openpty()
    termios.tcsetwinsize(outside, (40, 120))
    without = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    surroundings = {**without, "TERM": "xterm", "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, "-c", code], stdout=outside, env=surroundings) as running:
        os.close(outside)
        text = b""
        while True:
            try:
                text += os.read(inside, 1 << 16)
            except OSError:  # the other end is closed
                break
    os.close(inside)
    assert running.returncode == 0
    assert b"\x1b[1m*13.3%" in text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text.decode()).splitlines()
    assert 80 < max(map(len, plain)) <= 120
