"""The numbers that a page's script draws, and those of its table, against a report whose every number is its own."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from flexiclip_eval import Row
from flexiclip_eval.report.page import render_page
from flexiclip_eval.report.page_data import page_data
from flexiclip_eval.report.table import (
    ModelInfo,
    Report,
    best_of,
    brief,
    cells,
    family_of,
    is_share,
    label_of,
    long_name,
    short_name,
    show,
)
from flexiclip_eval.rows import TaskInfo
from flexiclip_eval.tradeoffs import CascadeCurve, CascadePoint, choose, parse_budget, primary_metric, sentence

R5, RANK = "image_retrieval_recall@5", "image_retrieval_median_rank"


def row(model: str, task: str, metrics: dict[str, float], seqhw: int, **more: object) -> Row:
    numbers = {"gflops": seqhw / 8, "images_per_s": 1000.0 / seqhw}
    return Row("set", "vit", model, task, metrics, "en", 50, seqhw, seqhw**2, 60 // seqhw, 60, **{**numbers, **more})  # type: ignore[arg-type]


@pytest.fixture
def report() -> Report:
    """Two models at two lengths on two tasks."""
    models = [ModelInfo("vit", "a", {}, (3, 6)), ModelInfo("vit", "b", {}, (6,))]
    tasks = [
        TaskInfo("set", "zeroshot_retrieval", {R5: 0.1, RANK: 25.5}, captions=60),
        TaskInfo("set", "zeroshot_classification", {"acc1": 0.5}, ("x", "y", "z"), 0.4),
    ]
    found = Report("flexiclip eval a b", models=models, tasks=[])
    for m, model in enumerate("ab"):
        for seqhw in (3, 6):
            unique = m * 10 + seqhw
            metrics = {R5: unique / 100, RANK: float(unique)}
            examples = [{"caption": f"c{unique}", "positives": [unique], "ranked": [1], "rank": unique}]
            found.add(row(model, "zeroshot_retrieval", metrics, seqhw), tasks[0], {"found": examples})
            recall = {"x": unique / 50, "z": 0.123456}
            found.add(row(model, "zeroshot_classification", {"acc1": unique / 40}, seqhw), tasks[1], {"per_class": recall})
    found.choices = choose(found.rows, budget=parse_budget("0.5 GFLOPs"))
    points = (CascadePoint(0, {R5: 0.03}, 0.0, 0.375, 0.0), CascadePoint(5, {R5: 0.04}, 0.5, 0.75, 3.75))
    found.cascades = [CascadeCurve("set", "zeroshot_retrieval", "vit", "b", 3, 6, points)]
    return found


def test_page_data_is_the_report(report: Report) -> None:
    data = page_data(report)
    assert data["models"] == [{"name": "vit a", "trained": (3, 6)}, {"name": "vit b", "trained": (6,)}]
    retrieval, classification = data["tasks"]
    assert [(m["key"], m["share"], m["chance"]) for m in retrieval["metrics"]] == [(R5, True, 0.1), (RANK, False, 25.5)]
    assert (retrieval["primary"], classification["primary"]) == (0, 0)
    assert [(r["model"], r["seqhw"], r["values"]) for r in retrieval["rows"]] == [
        (0, 3, [0.03, 3.0]),
        (0, 6, [0.06, 6.0]),
        (1, 3, [0.13, 13.0]),
        (1, 6, [0.16, 16.0]),
    ]
    assert [(r["tokens"], r["patch"], r["gflops"], r["speed"]) for r in retrieval["rows"][:2]] == [
        (9, 20, 3 / 8, 1000 / 3),
        (36, 10, 6 / 8, 1000 / 6),
    ]
    assert [r["found"][0]["caption"] for r in retrieval["rows"]] == ["c3", "c6", "c13", "c16"]
    assert [r["perClass"] for r in retrieval["rows"]] == [None] * 4
    assert [r["perClass"] for r in classification["rows"]] == [[u / 50, None, 0.1235] for u in (3, 6, 13, 16)]
    assert classification["classes"] == ["x", "y", "z"]
    assert [(c["model"], c["seqhw"]) for c in retrieval["choices"]] == [(0, 6), (0, 3), (1, 6), (1, 3)]
    assert retrieval["choices"][2]["text"] == sentence(report.choices[4]) != retrieval["choices"][0]["text"]
    (curve,) = retrieval["cascades"]
    assert (curve["model"], curve["short"], curve["long"]) == (1, 3, 6)
    assert curve["points"][1] == {"k": 5, "gflops": 0.75, "query": 3.75, "reranked": 0.5, "values": [0.04, None]}
    assert classification["cascades"] == []


def test_render_page_marks_the_best_of_each_column(report: Report) -> None:
    """The highest recall and the lowest rank; the values that a click sorts by are those of the rows."""
    page = render_page(report, {})
    table = re.findall(r"<table>.*?</table>", page, re.DOTALL)[0]
    body = re.findall(r"<tr>(.*?)</tr>", table.partition("<tbody>")[2].partition("</tbody>")[0])
    values = [re.findall(r'data-value="([^"]*)"', line) for line in body]
    assert values[2] == ["vit b", "3", "9", "20", "0.375", str(1000.0 / 3), "0.13", "13.0"]
    assert [re.findall(r'class="best" data-value="([^"]*)"', line) for line in body] == [["3.0"], [], [], ["0.16"]]
    assert "<td>10.0%</td><td>25.5</td>" in table.partition("<tfoot>")[2]
    data = json.loads(re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)[0])
    assert [r["values"] for r in data["tasks"][0]["rows"]] == [[0.03, 3.0], [0.06, 6.0], [0.13, 13.0], [0.16, 16.0]]
    assert "50 images, 60 captions" in page
    assert "50 images, 3 classes. The largest class holds 40.0% of the images." in page


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
