"""Outputs that are in the way of an evaluation or an analysis, and names that are not UTF-8."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from flexiclip_eval import EvalOptions, evaluate_suites
from flexiclip_eval.analysis.run import AnalysisOptions, analyze
from flexiclip_eval.report.files import read_rows
from kit.evaluation import toy_model, toys, write_shards, write_suite

from flexiclip.errors import UserError
from flexiclip.model_folder import LoadedModel, save_model


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return toy_model(tmp_path_factory.mktemp("model"))


def test_outputs_in_the_way_are_said_before_any_work(tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "toys.yaml", write_shards(tmp_path / "data", toys(5), (5,)))
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / "out"
    with pytest.raises(UserError, match=r"^--output .*file/out: cannot write there: Not a directory"):
        evaluate_suites(["missing"], [suite], output=output)
    with pytest.raises(UserError, match=r"^--output .*file/out: cannot write there: Not a directory"):
        analyze("missing", [suite], output, AnalysisOptions())


def test_names_that_are_not_utf8_are_scored_and_written(loaded: LoadedModel, tmp_path: Path) -> None:
    """The folders of the data and of the output, the model's name and the command. safetensors takes no such path itself."""
    place = tmp_path / os.fsdecode(b"caf\xe9")
    write_shards(place / "data", toys(6), (6,))
    (place / "test").mkdir()
    (place / "data" / "part-0.tar").rename(place / "test" / "0.tar")
    (place / "test" / "nshards.txt").write_text("1")
    (place / "classnames.txt").write_text("a\nb\nc\nd\ne\nf\n")
    (place / "zeroshot_classification_templates.txt").write_text("{c}\n")
    kept, command = tmp_path / "kept", f"flexiclip eval {place}"
    model = (str(place / "model"), loaded)
    rows = evaluate_suites(
        [model], [str(place)], seqhw=[3, 6], output=place / "out", options=EvalOptions(embeddings=kept, command=command)
    )
    assert {row.dataset for row in rows} == {"caf\\udce9"}
    assert rows[0].pretrained.endswith("caf\\udce9/model")
    assert read_rows(place / "out") == rows
    assert "caf\\udce9" in (place / "out" / "report.html").read_text(encoding="utf-8")
    assert len(list(kept.glob("images-*"))) == 2
    assert evaluate_suites([model], [str(place)], seqhw=[3, 6], options=EvalOptions(embeddings=kept)) == rows
    for _ in range(2):
        there = evaluate_suites([model], [str(place)], seqhw=[3, 6], options=EvalOptions(embeddings=place / "kept"))
        assert [row.metrics for row in there] == [row.metrics for row in rows]
    save_model(place / "model", loaded)
    with pytest.raises(UserError, match=r"cannot be read as safetensors"):
        evaluate_suites([str(place / "model")], [str(place)], seqhw=[3])
