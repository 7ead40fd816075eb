"""The files of an evaluation: their form, and that pictures and page show what the rows say."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from flexiclip_eval.report.compare import main
from flexiclip_eval.report.files import as_json, read_rows, write_report
from flexiclip_eval.report.table import print_report
from kit.reports import small_report
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


def test_the_terminal_table_fits_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_report(small_report(peak=3.0))
    lines = capsys.readouterr().out.splitlines()
    assert "…" not in "".join(lines)
    assert max(map(len, lines)) <= 80
    assert next(line for line in lines if line.startswith("     3")).split() == ["3", "9", "20", "0.5", "1,234"] + ["100.0%"] * 6
    assert any("not counted: 1" in line for line in lines)


def test_runs_in_one_picture(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_report(small_report(0.9, trained=(6,)), tmp_path / "fixed")
    picture = tmp_path / "new" / "both.png"
    runs = [f"flexible={written}", f"fixed at 6={tmp_path}/fixed/results.json"]
    assert main([*runs, "--output", str(picture)]) == 0
    size, colours = _colours(picture.read_bytes())
    assert size[0] > 600
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours
    with_star = picture.read_bytes()
    (tmp_path / "fixed" / "report.json").unlink()  # rows alone do not say where a model was trained
    assert main([*runs, "--output", str(picture)]) == 0
    assert picture.read_bytes() != with_star
    assert main([*runs, "--metric", "acc9", "--output", str(picture)]) == 2
    assert "acc9; it holds emoji acc1" in capsys.readouterr().err


def test_what_is_no_result_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nameless.json", "--output", str(tmp_path / "x.png")]) == 2
    assert main([f"a={tmp_path}/none.json", "--output", str(tmp_path / "x.png")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "LABEL=RESULTS" in lines[0]
    assert "no such file" in lines[1]
    (tmp_path / "results.json").write_text('[{"dataset": "a"}]')
    with pytest.raises(UserError, match=r"not a results\.json"):
        read_rows(tmp_path)
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match="cannot write there"):
        write_report(small_report(), tmp_path / "taken")
