"""The files of an evaluation: their form, that pictures show what the rows say, and what is said where they cannot be written."""

from __future__ import annotations

import csv
import errno
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flexiclip_eval import Row
from flexiclip_eval.report.files import (
    as_json,
    check_folder,
    read_report,
    read_rows,
    remove,
    require_folder,
    write_csv,
    write_report,
    write_whole,
)
from kit.reports import full_report, row, small_report
from PIL import Image

from flexiclip.errors import UserError

KEYS = {
    "dataset",
    "model",
    "pretrained",
    "task",
    "metrics",
    "language",
    "n",
    "seqhw",
    "seq_len",
    "patch_size",
    "image_size",
    "gflops",
    "images_per_s",
}
RECALLS = [f"{side}_retrieval_recall@{k}" for side in ("image", "text") for k in (1, 5, 10)]


def _colours(data: bytes) -> tuple[tuple[int, int], set[tuple[int, ...]]]:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return image.size, {colour for _, colour in image.getcolors(1 << 24) or () if isinstance(colour, tuple)}


def test_results_hold_the_rows_and_nothing_else(written: Path) -> None:
    rows = small_report().rows
    data = json.loads((written / "results.json").read_text())
    assert [set(row) for row in data] == [KEYS] * 6
    assert data == [as_json(row) for row in rows]
    assert read_rows(written) == rows


def test_each_row_stands_in_a_file_as_clip_benchmark_builds_from(tmp_path: Path) -> None:
    write_report(small_report(lengths=(3, 6, 15)), tmp_path)
    write_report(small_report(lengths=(3, 15)), tmp_path)  # the row of a length no longer evaluated goes
    files = sorted((tmp_path / "rows").iterdir())
    assert [file.name for file in files] == [
        f"emoji_zeroshot_{task}_seqhw{s}.json" for task in ("classification", "retrieval") for s in ("03", "15")
    ]
    for file in files:  # what `clip_benchmark build` does with a file
        row = json.loads(file.read_text())
        flat = {**row["metrics"], **row}
        assert flat["model"] + " " + flat["pretrained"] == "FlexiViT-<b> runs/x"
        assert flat["seq_len"] == flat["seqhw"] ** 2


def test_csv_has_a_metric_a_column(written: Path) -> None:
    with (written / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert set(rows[0]) == KEYS - {"metrics"} | set(RECALLS) | {"acc1", "mean_per_class_recall"}
    assert float(rows[1]["image_retrieval_recall@5"]) == 0.4 / 6
    assert rows[1]["acc1"] == ""
    assert float(rows[5]["acc1"]) == 0.5


def test_pictures_show_their_curves(written: Path) -> None:
    for name in ("retrieval", "classification"):
        size, colours = _colours((written / f"emoji_zeroshot_{name}.png").read_bytes())
        assert size[0] > 600
        assert size[1] > 400
        assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0xFF, 0xFF, 0xFF)} <= colours  # two of the curves, and the paper


READ_ONLY = OSError(errno.EROFS, "Read-only file system")


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


def test_read_rows_refuses_what_is_no_results_json(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('[{"dataset": "a"}]')
    with pytest.raises(UserError, match=r"not a results\.json"):
        read_rows(tmp_path)
    with pytest.raises(UserError, match=r"other\.json: no such file; give the results\.json"):
        read_rows(tmp_path / "other.json")


def test_write_report_into_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match=r"^--output .*taken: cannot write there"):
        write_report(small_report(), tmp_path / "taken")


def test_read_report_gives_the_rows_models_and_tasks_that_were_written(written: Path) -> None:
    report = small_report()
    for place in (written, written / "results.json"):
        found = read_report(place)
        assert [row.metrics for row in found.rows] == [row.metrics for row in report.rows]
        assert [(m.model, m.pretrained, tuple(m.trained_seqhw)) for m in found.models] == [("FlexiViT-<b>", "runs/x", (3, 6, 15))]
        assert [(t.dataset, t.task, t.chance, t.captions) for t in found.tasks] == [
            (t.dataset, t.task, t.chance, t.captions) for t in report.tasks
        ]


def test_check_folder_leaves_no_folder_that_was_not_there(tmp_path: Path) -> None:
    check_folder(tmp_path / "a" / "b", "--output")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    check_folder(tmp_path / "a" / "b", "--output")
    check_folder(tmp_path / "a", "--output")
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^--output X: cannot write there: "):
        check_folder(tmp_path / "file" / "below", "--output X")


def test_write_csv_has_a_column_for_each_metric_of_any_row(tmp_path: Path) -> None:
    rows: list[Row] = [row("a,b", "t", {"acc1": 0.5}, 3), row("c", "u", {"acc": 0.25}, 6, width=64, gflops=None)]
    write_csv(rows, tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert [(line["pretrained"], line["acc1"], line["acc"], line["width"], line["gflops"]) for line in found] == [
        ("a,b", "0.5", "", "", "0.375"),
        ("c", "", "0.25", "64", ""),
    ]
    assert list(found[0])[-2:] == ["acc1", "acc"]


def test_as_json_has_a_width_only_where_widths_were_compared() -> None:
    assert "width" not in as_json(row("a", "t", {"acc1": 0.5}, 3))
    assert as_json(row("a", "t", {"acc1": 0.5}, 3, width=64))["width"] == 64
    with pytest.raises(AssertionError, match="must be finite"):
        as_json(row("a", "t", {"acc1": float("nan")}, 3))
