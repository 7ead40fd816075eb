"""Choosing a length, and the price of a cascade, on curves whose answers are worked out by hand, and in a whole evaluation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flexiclip_eval import EvalOptions, Row, evaluate_suites
from flexiclip_eval.tradeoffs import (
    Budget,
    CascadePoint,
    cascade_pair,
    choose,
    fronts,
    pareto_front,
    parse_budget,
    parse_cascade,
    priced,
    sentence,
    shortlists,
)
from kit.evaluation import toy_model, toys, write_shards, write_suite

from flexiclip.errors import UserError

RECALL = "image_retrieval_recall@5"


def _row(seqhw: int | None, value: float, gflops: float | None = None, speed: float | None = None, model: str = "m") -> Row:
    metrics = {"image_retrieval_recall@1": 0.9, "image_retrieval_recall@5": value}
    length = None if seqhw is None else seqhw**2
    return Row("emoji", model, "p", "zeroshot_retrieval", metrics, "en", 100, seqhw, length, None, None, gflops, speed)


CURVE = [_row(12, 0.50, 8.0, 50.0), _row(3, 0.40, 1.0, 400.0), _row(6, 0.49, 2.0, 200.0), _row(15, 0.48, 16.0, 25.0)]


@pytest.mark.parametrize(("tolerance", "seqhw"), [(0.0, 12), (0.99, 12), (1.0, 6), (9.99, 6), (10.0, 3), (100.0, 3)])
def test_the_shortest_length_within_the_tolerance(tolerance: float, seqhw: int) -> None:
    (choice,) = choose(CURVE, tolerance=tolerance)
    assert (choice.seqhw, choice.best_seqhw, choice.best_value) == (seqhw, 12, 0.50)
    assert choice.metric == "image_retrieval_recall@5"
    row = next(row for row in CURVE if row.seqhw == seqhw)
    assert (choice.value, choice.gflops) == (row.metrics["image_retrieval_recall@5"], row.gflops)
    assert choice.ms == 1000 / (row.images_per_s or 1)


def test_a_point_is_a_point_in_floats_too() -> None:
    """Of 0.29 and 0.28, of 0.58 and 0.57: the shorter is one point below, never a little more."""
    for best in range(1, 101):
        for points in (1, 2, 5):
            curve = [_row(3, (best - points) / 100), _row(6, best / 100)]
            assert choose(curve, tolerance=points)[0].seqhw == 3, (best, points)
            assert choose(curve, tolerance=points - 0.001)[0].seqhw == 6


@pytest.mark.parametrize(
    ("budget", "seqhw"),
    [
        ("5 GFLOPs", 6),
        ("8gflop", 12),
        ("1999 MFLOPs", 3),
        ("1 TFLOPs", 12),
        ("20 ms", 12),
        ("0.019 s", 6),
        ("2500us", 3),
        ("1 ms", None),
    ],
)
def test_the_best_length_within_a_budget(budget: str, seqhw: int | None) -> None:
    choice = choose(CURVE, budget=parse_budget(budget))[1]
    assert choice.seqhw == seqhw
    assert choice.rule == f"best within {parse_budget(budget)}"
    assert (choice.value is None) == (seqhw is None)


def test_of_equal_lengths_the_shorter_and_of_unknown_costs_none() -> None:
    level = [_row(3, 0.4, 1.0), _row(6, 0.4, 2.0)]
    assert [c.seqhw for c in choose(level, budget=Budget(9, "GFLOPs"))] == [3, 3]
    assert [c.seqhw for c in choose(level, budget=Budget(9, "ms"))] == [3, None]
    assert sentence(choose(level, budget=Budget(9, "ms"))[1]).endswith("(best within 9 ms): the cost of the lengths is unknown")
    assert sentence(choose(CURVE, budget=Budget(0.5, "GFLOPs"))[1]).endswith(
        "(best within 0.5 GFLOPs): the cheapest is seqhw 3 with 1 GFLOPs"
    )


def test_each_model_has_a_choice_and_a_single_length_has_none() -> None:
    rows = [*CURVE, *(_row(s, 0.1 * s, model="other") for s in (2, 4)), _row(None, 0.9, model="fixed"), _row(7, 0.9, model="one")]
    assert [(c.model, c.seqhw) for c in choose(rows)] == [("m", 6), ("other", 4)]
    assert choose([_row(None, 0.9, model="fixed")]) == []


def test_the_sentence_of_a_choice() -> None:
    assert sentence(choose(CURVE)[0]) == (
        "text→image R@5: seqhw 6 (49.0%, 2 GFLOPs, 5 ms), shortest within 1 point of the best (50.0% at 12)"
    )


def _with_error(row: Row, error: float) -> Row:
    return replace(row, standard_errors={RECALL: error})


def test_a_length_is_better_only_if_the_difference_exceeds_its_standard_error() -> None:
    """0.40 against 0.50 with errors of 0.06 and 0.08: the difference has one of 0.1, which it does not exceed."""
    short, long = _row(3, 0.40, 1.0), _row(6, 0.50, 2.0)
    budget = Budget(9, "GFLOPs")
    for first, second, seqhw in ((0.06, 0.08, 3), (0.06, 0.0799, 6), (0.0, 0.0, 6)):
        choices = choose([_with_error(short, first), _with_error(long, second)], tolerance=1, budget=budget)
        assert [choice.seqhw for choice in choices] == [seqhw, seqhw], (first, second)
        assert [choice.best_seqhw for choice in choices] == [6, 6]
    choice = choose([_with_error(short, 0.06), _with_error(long, 0.08)])[0]
    assert (choice.error, choice.rival_seqhw, choice.noise) == (0.06, 6, pytest.approx(0.1))
    assert sentence(choice) == (
        "text→image R@5: seqhw 3 (40.0% ±6.0, 1 GFLOPs), shortest within 1 point of the best (50.0% at 6); the difference from "
        "seqhw 6 is within its standard error of 10.0 points"
    )
    assert [choice.seqhw for choice in choose([short, _with_error(long, 0.5)])] == [6], "one error alone says nothing"
    longest = _with_error(_row(12, 0.60, 8.0), 0.0)
    within = choose([_with_error(short, 0.06), _with_error(long, 0.08), longest], budget=Budget(5, "GFLOPs"))[1]
    assert (within.seqhw, within.best_seqhw, within.rival_seqhw) == (3, 12, 6), "the best within the budget is the rival"


def test_the_hits_of_the_queries_are_compared_in_pairs() -> None:
    """Two lengths of the same 100 queries: the long one adds 9 hits and loses none, or adds 29 and loses 20."""
    short, long = _with_error(_row(3, 0.40, 1.0), 0.049), _with_error(_row(6, 0.49, 2.0), 0.05)
    a, kept, mixed = torch.zeros(100), torch.zeros(100), torch.zeros(100)
    a[:40] = 1
    kept[:49] = 1
    mixed[20:69] = 1
    a, kept, mixed = a.double(), kept.double(), mixed.double()
    (certain,) = choose([short, long], hits=[a, kept])
    assert (certain.seqhw, certain.noise) == (6, None)
    errors = [(-1.0) ** (i < 20) if i < 20 or 40 <= i < 69 else 0.0 for i in range(100)]
    expected = float(np.std(errors)) / 10
    assert expected == pytest.approx(np.sqrt(0.49 - 0.09**2) / 10)
    (doubtful,) = choose([short, long], tolerance=0, hits=[a, mixed])
    assert (doubtful.seqhw, doubtful.noise) == (6, None), "0.09 exceeds 0.0694"
    (close,) = choose([short, replace(long, metrics={RECALL: 0.46})], tolerance=0, hits=[a, mixed])
    assert close.seqhw == 3
    assert close.noise == pytest.approx(expected)


@pytest.mark.parametrize("text", ["5", "GFLOPs", "5 apples", "0 ms", "-3 ms", "nan ms", "1e400 GFLOPs", "5 GFLOPs 3", "msms", ""])
def test_a_bad_budget_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match=r"^--budget '.*': write a number and GFLOPs .* example '5 GFLOPs'$"):
        parse_budget(text)


def test_a_bad_tolerance_is_one_line() -> None:
    with pytest.raises(UserError, match="--tolerance -1: write points"):
        choose(CURVE, tolerance=-1)


def test_the_price_of_a_cascade_by_hand() -> None:
    found = [CascadePoint(0, {"r": 0.1}, 0.0), CascadePoint(5, {"r": 0.3}, 0.4), CascadePoint(20, {"r": 0.5}, 1.0)]
    assert priced(found, 20, 1.0, 10.0) == (
        CascadePoint(0, {"r": 0.1}, 0.0, 1.0, 0.0),
        CascadePoint(5, {"r": 0.3}, 0.4, 5.0, 50.0),  # all images short, 8 of 20 long as well
        CascadePoint(20, {"r": 0.5}, 1.0, 10.0, 200.0),  # long alone needs no short pass
    )
    assert {point.gflops_per_image for point in priced(found, 20, None, None)} == {None}


def test_the_pair_of_lengths() -> None:
    assert parse_cascade("5:15") == (5, 15)
    assert cascade_pair([8, 3, 15], None) == (3, 15)
    assert cascade_pair([8, 3, 15], (3, 8)) == (3, 8)
    assert cascade_pair([8], None) is None
    assert cascade_pair([None], None) is None
    assert shortlists(60) == [0, 5, 10, 20, 50, 60]
    assert shortlists(5) == [0, 5]
    with pytest.raises(UserError, match="--cascade 3:9: both must be evaluated; --seqhw is 3,8,15"):
        cascade_pair([8, 3, 15], (3, 9))
    for text in ("5", "15:5", "5:5", "0:3", "a:b", "5:15:20"):
        with pytest.raises(UserError, match="write SHORT:LONG"):
            parse_cascade(text)


def test_choices_and_cascade_of_an_evaluation(tmp_path: Path) -> None:
    loaded = toy_model(tmp_path)
    suite = write_suite(tmp_path / "toys.yaml", write_shards(tmp_path / "data", toys(23), (23,)))
    with pytest.raises(UserError, match="--cascade 2:6: both must be evaluated"):
        evaluate_suites([("toy", loaded)], [suite], seqhw=[2, 3], options=EvalOptions(cascade=(2, 6)))
    with pytest.raises(UserError, match="--tolerance -1"):
        evaluate_suites([("toy", loaded)], [suite], options=EvalOptions(tolerance=-1))
    budget = parse_budget("0.2 MFLOPs")
    rows = evaluate_suites([("toy", loaded)], [suite], output=tmp_path / "out", options=EvalOptions(tolerance=100, budget=budget))
    about = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [(c["task"], c["seqhw"]) for c in about["choices"][::2]] == [("zeroshot_retrieval", 2), ("zeroshot_classification", 2)]
    cheap = {task: [r for r in rows if r.task == task and (r.gflops or 0) <= budget.limit] for task in {r.task for r in rows}}
    for choice in about["choices"][1::2]:
        assert choice["value"] == max(row.metrics[choice["metric"]] for row in cheap[choice["task"]])
        assert choice["seqhw"] in (2, 3)  # 6 costs 0.36 MFLOPs
    (curve,) = about["cascades"]
    assert (curve["short"], curve["long"]) == (2, 6)
    assert [point["shortlist"] for point in curve["points"]] == [0, 5, 10, 20, 23]
    for point, seqhw in ((curve["points"][0], 2), (curve["points"][-1], 6)):
        row = next(row for row in rows if row.seqhw == seqhw and row.task == "zeroshot_retrieval")
        assert point["gflops_per_image"] == row.gflops
        assert point["metrics"] == {name: row.metrics[name] for name in point["metrics"]}


def row(gflops: float | None, width: int | None, recall: float, model: str = "m") -> Row:
    return Row("emoji", model, "p", "zeroshot_retrieval", {RECALL: recall}, "en", 9, 3, 9, None, None, gflops, None, width)


def test_the_front_is_what_nothing_beats() -> None:
    rng = np.random.default_rng(0)
    rows = [row(float(rng.integers(1, 6)), int(rng.integers(1, 6)), rng.integers(0, 9) / 10, str(i)) for i in range(60)]
    (front,) = fronts([*rows, row(None, 4, 1.0), row(0.5, None, 1.0)])
    kept = {point.model for point in front.points}
    for one in rows:
        better = [
            o
            for o in rows
            if o.gflops <= one.gflops
            and o.width <= one.width
            and o.metrics[RECALL] >= one.metrics[RECALL]
            and (o.gflops, o.width, o.metrics[RECALL]) != (one.gflops, one.width, one.metrics[RECALL])
        ]
        assert (one.model in kept) == (not better), one
    assert 0 < len(kept) < 60
    assert fronts([row(1.0, None, 0.5)]) == []


def test_pareto_front_by_hand() -> None:
    """(quality, cheapness): equal points stay both, and the order of the points stays."""
    points = [(2.0, 2.0), (3.0, 1.0), (2.0, 1.0), (2.0, 2.0), (1.0, 3.0), (0.0, 3.0)]
    assert pareto_front(points, lambda point: point) == [(2.0, 2.0), (3.0, 1.0), (2.0, 2.0), (1.0, 3.0)]
    assert pareto_front([], lambda point: point) == []
