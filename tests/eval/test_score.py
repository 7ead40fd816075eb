"""Data sets that cannot be scored are named at the end, and the others are scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from flexiclip_eval import EvalOptions, evaluate_suites, make_evaluators
from kit.evaluation import toy_model
from kit.roots import write_root

from flexiclip.__main__ import main
from flexiclip.errors import UserError
from flexiclip.model_folder import LoadedModel, save_model


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return toy_model(tmp_path_factory.mktemp("model"))


def suite_of(folder: Path, *roots: Path) -> str:
    (folder / "suite.yaml").write_text(json.dumps({"datasets": [{"root": str(root)} for root in roots]}))
    return str(folder / "suite.yaml")


def test_data_sets_that_cannot_be_read_are_named_at_the_end(
    loaded: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One whose files are missing, one whose shard is, one whose labels are wrong: the two others are scored and written."""
    good, other, absent, broken, wrong = (
        write_root(tmp_path / f"wds_{name}", "classification", shards=(4,)) for name in ("a", "b", "absent", "broken", "wrong")
    )
    (absent / "test" / "nshards.txt").unlink()
    (broken / "test" / "0.tar").unlink()
    (wrong / "classnames.txt").write_text("animals\n")
    suite = suite_of(tmp_path, good, absent, broken, wrong, other)
    save_model(tmp_path / "model", loaded)
    command = [
        "eval",
        str(tmp_path / "model"),
        "--suite",
        suite,
        "--seqhw",
        "3",
        "--output",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    assert main(command) == 2
    said = capsys.readouterr()
    last = said.err.splitlines()[-1]
    assert last.startswith("flexiclip: 3 of 5 data sets could not be scored as a whole: absent: ")
    assert "nshards.txt: no such file" in last
    assert "; broken: shard" in last
    assert "; wrong: " in last
    assert "label 1 of 0.tar/s0000001 is not among its 1 classes" in last
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["dataset"] for row in rows] == ["a", "b"]
    alone = evaluate_suites([("toy", loaded)], [str(good)], seqhw=[3])
    assert rows[0]["metrics"] == alone[0].metrics
    about = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(about["unscored"]) == ["absent", "broken", "wrong"]
    assert "could not be scored as a whole" in (tmp_path / "out" / "report.html").read_text()
    assert "data set broken could not be scored as a whole" in said.out
    with pytest.raises(UserError, match=r"nshards\.txt: no such file"):  # a training run would meet it again and again
        make_evaluators([suite])


def test_nothing_that_can_be_read_is_the_error_itself(loaded: LoadedModel, tmp_path: Path) -> None:
    absent, wrong = (write_root(tmp_path / f"wds_{name}", "classification", shards=(4,)) for name in ("absent", "wrong"))
    (absent / "test" / "nshards.txt").unlink()
    (wrong / "classnames.txt").write_text("animals\n")
    with pytest.raises(UserError, match=r"^\S*nshards\.txt: no such file"):
        evaluate_suites([("toy", loaded)], [suite_of(tmp_path, absent)], seqhw=[3])
    with pytest.raises(UserError, match=r"^task classification: the label 1 of"):
        evaluate_suites([("toy", loaded)], [suite_of(tmp_path, wrong)], seqhw=[3])


def test_embeddings_that_cannot_be_kept_stop_everything(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next data set could not keep its own either."""
    from flexiclip_eval.embeddings import store

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "save_tensors", full)
    roots = [write_root(tmp_path / f"wds_{name}", "classification", shards=(4,)) for name in "ab"]
    with pytest.raises(UserError, match=r"^--embeddings .*kept: cannot write there: .*No space left"):
        evaluate_suites(
            [("toy", loaded)], [suite_of(tmp_path, *roots)], seqhw=[3], options=EvalOptions(embeddings=tmp_path / "kept")
        )
    assert list((tmp_path / "kept").iterdir()) == []
