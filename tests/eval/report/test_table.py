"""The terminal's table, and the names, numbers and first metric of tasks in it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from flexiclip_eval import Row
from flexiclip_eval.report.table import (
    best_of,
    brief,
    cells,
    family_of,
    is_share,
    label_of,
    long_name,
    print_report,
    short_name,
    show,
)
from flexiclip_eval.tradeoffs import primary_metric
from kit.reports import small_report


def test_the_terminal_table_fits_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_report(small_report(peak=3.0))
    lines = capsys.readouterr().out.splitlines()
    assert "…" not in "".join(lines)
    assert max(map(len, lines)) <= 80
    assert next(line for line in lines if line.startswith("     3")).split() == ["3", "9", "20", "0.5", "1,234"] + ["100.0%"] * 6
    assert any("not counted: 1" in line for line in lines)


R5, RANK = "image_retrieval_recall@5", "image_retrieval_median_rank"


def row(model: str, task: str, metrics: dict[str, float], seqhw: int, **more: object) -> Row:
    numbers = {"gflops": seqhw / 8, "images_per_s": 1000.0 / seqhw}
    return Row("set", "vit", model, task, metrics, "en", 50, seqhw, seqhw**2, 60 // seqhw, 60, **{**numbers, **more})  # type: ignore[arg-type]


def test_names_and_numbers_of_metrics() -> None:
    assert (short_name(R5), long_name(R5)) == ("text→image R@5", "text → image recall@5")
    assert (short_name("text_retrieval_recall@1"), long_name(RANK)) == ("image→text R@1", "text → image median rank")
    assert (family_of(R5), family_of("acc1")) == ("image_retrieval_recall", "accuracy")
    assert (is_share("acc1"), is_share(RANK)) == (True, False)
    assert (best_of("acc1", [0.2, 0.3]), best_of(RANK, [2.0, 3.0])) == (0.3, 2.0)
    assert [show("acc1", 0.12345), show(RANK, 1234.56), show("acc1", None)] == ["12.3%", "1,234.6", "–"]
    assert brief("x" * 48) == "x" * 48
    assert brief("runs/" + "x" * 48) == "…" + "x" * 47
    one = row("a", "t", {"acc1": 0.5}, 3)
    assert cells(one) == ["3", "9", "20", "0.375", "333"]
    empty = replace(one, seqhw=None, seq_len=None, patch_size=[16, 8], gflops=None, images_per_s=None, width=64)
    assert cells(empty) == ["–", "–", "16×8", "–", "–"]
    assert (label_of(one), label_of(empty)) == ("vit a", "vit a [:64]")


def test_primary_metric_of_each_task() -> None:
    expected = {
        "acc1": {"mean_per_class_recall": 1.0, "acc5": 1.0, "acc1": 1.0},
        R5: {"text_retrieval_recall@5": 1.0, RANK: 1.0, R5: 1.0},
        "mean_average_precision": {"mean_average_precision": 1.0},
        "acc": {"text_acc": 1.0, "image_acc": 1.0, "acc": 1.0},
        "lp_acc1": {"lp_mean_per_class_recall": 1.0, "lp_acc1": 1.0},
        "other": {"other": 1.0, "more": 1.0},
    }
    assert {name: primary_metric(metrics) for name, metrics in expected.items()} == {n: n for n in expected}
