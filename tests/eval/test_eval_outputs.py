"""Outputs that cannot be written, and names that are not UTF-8: one line, and no half of a file."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from eval_tools import toy_model, toys, write_shards, write_suite
from flexiclip_eval import EvalOptions, Row, evaluate_suites
from flexiclip_eval.analysis.run import AnalysisOptions, analyze
from flexiclip_eval.report.compare import main as compare
from flexiclip_eval.report.files import as_json, read_rows, remove, require_folder, write_report, write_whole
from report_kit import full_report

from flexiclip.errors import UserError
from flexiclip.model_folder import LoadedModel, save_model

FULL = OSError(errno.ENOSPC, "No space left on device")
READ_ONLY = OSError(errno.EROFS, "Read-only file system")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return toy_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """disk(room): after as many bytes in files of Path.write_bytes the disk is full; what fits is written, as a disk does."""

    def limit(room: int) -> None:
        write = Path.write_bytes
        left = [room]

        def limited(path: Path, data: bytes) -> int:
            written = write(path, data[: left[0]])
            left[0] -= written
            if written < len(data):
                raise FULL
            return written

        monkeypatch.setattr(Path, "write_bytes", limited)

    return limit


def test_write_whole_leaves_the_old_file_or_the_new_one(tmp_path: Path, disk: Callable[[int], None]) -> None:
    file = tmp_path / "a.json"
    write_whole(file, '{"é": "\udcff"}')
    assert file.read_bytes() == '{"é": "\\udcff"}\n'.encode()
    assert json.loads(file.read_text(encoding="utf-8")) == {"é": "\udcff"}
    write_whole(file, b"\x89PNG")
    assert file.read_bytes() == b"\x89PNG"
    with pytest.raises(UserError, match=r"cannot be written: Is a directory"):
        write_whole(tmp_path, "x")
    disk(10)
    with pytest.raises(UserError, match=r"a\.json: cannot be written: No space left on device"):
        write_whole(file, b"x" * 11)
    assert file.read_bytes() == b"\x89PNG"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("room", [0, 9_000, 60_000, 300_000])
def test_write_report_on_a_full_disk_is_one_line(room: int, tmp_path: Path, disk: Callable[[int], None]) -> None:
    report, gallery = full_report(tmp_path / "data")
    disk(room)
    with pytest.raises(UserError, match=r"out/.*: cannot be written: No space left on device$"):
        write_report(report, tmp_path / "out", gallery)
    left = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert not [file for file in left if file.name.startswith(".")]
    for file in left:
        if file.suffix == ".json":
            json.loads(file.read_text())
    assert (tmp_path / "out" / "results.json").is_file() == (room >= 60_000)
    assert not (tmp_path / "out" / "report.html").exists()


def test_require_folder_tries_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is there may be read-only, which is better known before the evaluation than after it."""
    require_folder(tmp_path / "new" / "folder", "--output")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        with pytest.raises(UserError, match=r"^--output X: cannot write there: "):
            require_folder(place, "--output X")

    def refused(*_: object, **__: object) -> Any:
        raise READ_ONLY

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    with pytest.raises(UserError, match=r"^--output X: cannot write there: Read-only file system"):
        require_folder(tmp_path, "--output X")


def test_remove_says_what_it_cannot(tmp_path: Path) -> None:
    remove(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"cannot be removed: (Is a directory|Operation not permitted)"):
        remove(tmp_path)


def test_outputs_in_the_way_are_said_before_any_work(tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "toys.yaml", write_shards(tmp_path / "data", toys(5), (5,)))
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / "out"
    with pytest.raises(UserError, match=r"^--output .*file/out: cannot write there: Not a directory"):
        evaluate_suites(["missing"], [suite], output=output)
    with pytest.raises(UserError, match=r"^--output .*file/out: cannot write there: Not a directory"):
        analyze("missing", [suite], output, AnalysisOptions())


def test_compare_writes_what_the_ending_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], disk: Callable[[int], None]
) -> None:
    metrics = {"image_retrieval_recall@5": 0.5}
    rows = [Row("d", "m", "p", "zeroshot_retrieval", metrics, "en", 9, s, s * s, None, None, None, None) for s in (3, 6)]
    (tmp_path / "run").mkdir()
    write_whole(tmp_path / "run" / "results.json", json.dumps([as_json(row) for row in rows]))
    for name, start in (("a.png", b"\x89PNG"), ("a.SVG", b"<?xml")):
        assert compare([f"a={tmp_path}/run", "--output", str(tmp_path / name)]) == 0
        assert (tmp_path / name).read_bytes().startswith(start)
    capsys.readouterr()
    for wrong, said in ((f"{tmp_path}/a.png/b.png", "cannot write there"), (f"{tmp_path}/a.docx", "no picture ends in .docx")):
        assert compare([f"a={tmp_path}/run", "--output", wrong]) == 2
        assert said in capsys.readouterr().err
    disk(100)
    assert compare([f"a={tmp_path}/run", "--output", str(tmp_path / "b.png")]) == 2
    assert capsys.readouterr().err.endswith("b.png: cannot be written: No space left on device\n")
    assert not (tmp_path / "b.png").exists()


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
