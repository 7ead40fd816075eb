"""The table of a task: its cells, the labels of its models, and which of its values are the best."""

from __future__ import annotations

from dataclasses import replace

import pytest
from flexiclip_eval.report.table import ModelInfo, Report, brief, cells, label_of, short_labels, task_table
from flexiclip_eval.rows import TaskInfo
from kit.reports import row


def test_cells_and_labels_of_rows() -> None:
    assert brief("x" * 48) == "x" * 48
    assert brief("runs/" + "x" * 48) == "…" + "x" * 47
    one = row("a", "t", {"acc1": 0.5}, 3)
    assert cells(one) == ["3", "9", "20", "0.375", "333"]
    empty = replace(one, seqhw=None, seq_len=None, patch_size=[16, 8], gflops=None, images_per_s=None, width=64)
    assert cells(empty) == ["–", "–", "16×8", "–", "–"]
    assert (label_of(one), label_of(empty)) == ("vit a", "vit a [:64]")
    assert label_of(replace(empty, label="mine")) == "mine [:64]"


@pytest.mark.parametrize(
    ("labels", "short"),
    [
        (["ViT runs/a", "ViT runs/bc"], ["a", "bc"]),
        (["ViT runs/abc", "ViT runs/abd"], ["abc", "abd"]),  # never a part of a word
        (["ViT runs/a", "other"], ["ViT runs/a", "other"]),
        (["ViT runs/a"], ["ViT runs/a"]),
        (["ViT runs/a", "ViT runs/a/b"], ["a", "a/b"]),
        (["ViT a", "ViT a [:64]"], ["a", "a [:64]"]),
        ([], []),
    ],
)
def test_labels_lose_what_all_of_them_begin_with(labels: list[str], short: list[str]) -> None:
    assert short_labels(labels) == dict(zip(labels, short, strict=True))


def test_the_table_of_a_task() -> None:
    """The best of each column is marked over all models, a tie on both sides, and a column of equal values has no best."""
    report = Report("", models=[ModelInfo("vit", "a"), ModelInfo("vit", "b", label="mine")])
    task = TaskInfo("set", "t", {"acc1": 0.25, "rank": 9.5})
    values = (("a", 3, 0.5, 7.0, 0.8), ("a", 6, 0.625, 5.5, 0.8), ("b", 3, 0.625, 6.0, 0.8))
    for model, seqhw, acc, rank, same in values:
        metrics = {"acc1": acc, "x_median_rank": rank, "acc5": same}
        given = {"standard_errors": {"acc1": 0.0271, "x_median_rank": 1.25}, "label": "mine" if model == "b" else None}
        report.add(row(model, "t", metrics, seqhw, **given), task, {})
    table = task_table(report, task)
    assert table.title == "set · t · 50 images"
    assert table.head == ["model", "seqhw", "tokens", "patch", "GFLOPs", "images/s", "acc1", "x median rank", "acc5"]
    assert table.rows[1] == ["vit a", "6", "36", "10", "0.75", "167", "62.5% ±2.7", "5.5 ±1.2", "80.0%"]
    assert [line[0] for line in table.rows] == ["vit a", "vit a", "mine", "chance"]
    assert table.rows[3] == ["chance", "", "", "", "", "", "25.0%", "–", "–"]
    assert table.best == {(1, 6), (2, 6), (1, 7)}
