"""A data set that cannot be read does not stop the others, and published class names that are empty or equal."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import webdataset
from eval_tools import encode_one_by_one, texts_one_by_one, toy_model, toys, unit
from flexiclip_eval import EvalOptions, evaluate_suites, make_evaluators
from flexiclip_eval.suites.load import load_datasets, load_readable
from test_sources import write_root

from flexiclip.__main__ import main
from flexiclip.errors import UserError
from flexiclip.model_folder import LoadedModel, save_model

DISTANCES = ("very nearby", "nearby", "near", "", "distant", "very distant")
"""CLIP_benchmark's names of clevr_closest_object_distance."""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return toy_model(tmp_path_factory.mktemp("model"))


def distances(root: Path) -> Path:
    """Twelve images of the six distances."""
    (root / "test").mkdir(parents=True)
    with webdataset.TarWriter(str(root / "test" / "0.tar"), encoder=False, mtime=0) as writer:
        for number, toy in enumerate(toys(12)):
            data = io.BytesIO()
            toy.image.save(data, "PNG")
            writer.write({"__key__": f"s{number:02d}", "png": data.getvalue(), "cls": str(number % 6).encode()})
    (root / "test" / "nshards.txt").write_text("1")
    (root / "classnames.txt").write_text("\n".join(DISTANCES) + "\n")
    (root / "zeroshot_classification_templates.txt").write_text("{c} shapes.\nthe nearest shape is {c}.\n")
    return root


def test_an_empty_class_name_is_scored_as_clip_benchmark_scores_it(
    loaded: LoadedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from clip_benchmark.datasets.builder import build_wds_dataset
    from clip_benchmark.metrics.zeroshot_classification import zero_shot_classifier

    root = distances(tmp_path / "wds_distance")
    (row,) = evaluate_suites([("toy", loaded)], [str(root)], seqhw=[3])
    assert "class 3 has an empty name" in caplog.text
    theirs = build_wds_dataset("distance", loaded.transform, split="test", data_dir=str(root))
    assert tuple(theirs.classes) == DISTANCES == load_datasets([str(root)])[0].tasks[0].classes
    class_z = zero_shot_classifier(loaded.model, loaded.tokenizer, theirs.classes, theirs.templates, "cpu", amp=False).T.numpy()
    ours = [texts_one_by_one(loaded, [f"{name} shapes.", f"the nearest shape is {name}."]).mean(0) for name in DISTANCES]
    assert np.allclose(unit(np.stack(ours)), unit(class_z), atol=1e-6)
    right = (encode_one_by_one(loaded, toys(12), 3) @ unit(class_z).T).argmax(1) == np.arange(12) % 6
    assert row.metrics["acc1"] == pytest.approx(right.mean())
    assert row.n == 12


def test_empty_lines_of_classnames_are_counted_as_clip_benchmark_counts_them(tmp_path: Path) -> None:
    from clip_benchmark.datasets.builder import build_wds_dataset

    root = distances(tmp_path / "wds_distance")
    for text in ("a\nb\n", "a\nb", "a\r\n b \r\n\r\n", "\na\nb", "a\n\nb\n"):
        (root / "classnames.txt").write_text(text)
        theirs = build_wds_dataset("distance", None, split="test", data_dir=str(root)).classes
        assert load_datasets([str(root)])[0].tasks[0].classes == tuple(theirs)


def test_names_that_a_root_has_twice_name_the_suite_that_says_so(tmp_path: Path, loaded: LoadedModel) -> None:
    root = write_root(tmp_path / "wds_toys", "classification", shards=(6,))
    (root / "classnames.txt").write_text("crane\nflags\ncrane\n")
    with pytest.raises(UserError, match=r"'crane' stands twice in classnames\.txt") as caught:
        evaluate_suites([("toy", loaded)], [str(root)], seqhw=[3])
    suite = tmp_path / "suite.yaml"
    suite.write_text(str(caught.value).partition("give --suite a file with ")[2])
    (row,) = evaluate_suites([("toy", loaded)], [str(suite)], seqhw=[3])
    (task,) = load_datasets([str(suite)])[0].tasks
    assert (row.dataset, row.n, task.ties) == ("toys", 6, "topk")
    assert task.words == {"crane": ("crane",), "flags": ("flags",), "crane #2": ("crane",)}


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
    found, failed = load_readable([suite_of(tmp_path, absent, wrong)])
    assert ([dataset.name for dataset in found], list(failed)) == (["wrong"], ["absent"])


def test_embeddings_that_cannot_be_kept_stop_everything(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next data set could not keep its own either."""
    from flexiclip_eval.embeddings import store

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "save_file", full)
    roots = [write_root(tmp_path / f"wds_{name}", "classification", shards=(4,)) for name in "ab"]
    with pytest.raises(UserError, match=r"^--embeddings .*kept: cannot write there: .*No space left"):
        evaluate_suites(
            [("toy", loaded)], [suite_of(tmp_path, *roots)], seqhw=[3], options=EvalOptions(embeddings=tmp_path / "kept")
        )
    assert list((tmp_path / "kept").iterdir()) == []
