"""The terminal's table, and the names, numbers and first metric of tasks in it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from flexiclip_eval.report.table import brief, cells, label_of, print_report
from kit.reports import row, small_report


def test_the_terminal_table_fits_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_report(small_report(peak=3.0))
    lines = capsys.readouterr().out.splitlines()
    assert "…" not in "".join(lines)
    assert max(map(len, lines)) <= 80
    assert next(line for line in lines if line.startswith("     3")).split() == ["3", "9", "20", "0.5", "1,234"] + ["100.0%"] * 6
    assert any("not counted: 1" in line for line in lines)


def test_cells_and_labels_of_rows() -> None:
    assert brief("x" * 48) == "x" * 48
    assert brief("runs/" + "x" * 48) == "…" + "x" * 47
    one = row("a", "t", {"acc1": 0.5}, 3)
    assert cells(one) == ["3", "9", "20", "0.375", "333"]
    empty = replace(one, seqhw=None, seq_len=None, patch_size=[16, 8], gflops=None, images_per_s=None, width=64)
    assert cells(empty) == ["–", "–", "16×8", "–", "–"]
    assert (label_of(one), label_of(empty)) == ("vit a", "vit a [:64]")
