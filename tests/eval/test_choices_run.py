"""A whole evaluation leaves its choices and its cascade in the report, equal to its own rows at the ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from eval_tools import toy_model, toys, write_shards, write_suite
from flexiclip_eval import EvalOptions, evaluate_suites
from flexiclip_eval.tradeoffs import parse_budget

from flexiclip.errors import UserError


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
