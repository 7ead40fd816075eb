"""`flexiclip compare`: runs in one picture, and what is no result."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from flexiclip_eval import Row
from flexiclip_eval.report.compare import main
from flexiclip_eval.report.compare import main as compare
from flexiclip_eval.report.files import as_json, write_report, write_whole
from kit.reports import small_report
from PIL import Image


def _colours(data: bytes) -> tuple[tuple[int, int], set[tuple[int, ...]]]:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return image.size, {colour for _, colour in image.getcolors(1 << 24) or () if isinstance(colour, tuple)}


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
    assert "acc9; choose one of emoji acc1" in capsys.readouterr().err


def test_what_is_no_result_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nameless.json", "--output", str(tmp_path / "x.png")]) == 2
    assert main([f"a={tmp_path}/none.json", "--output", str(tmp_path / "x.png")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "LABEL=RESULTS" in lines[0]
    assert "no such file" in lines[1]


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
    for wrong, said in ((f"{tmp_path}/a.png/b.png", "cannot write there"), (f"{tmp_path}/a.docx", "write a .docx picture")):
        assert compare([f"a={tmp_path}/run", "--output", wrong]) == 2
        assert said in capsys.readouterr().err
    disk(100)
    assert compare([f"a={tmp_path}/run", "--output", str(tmp_path / "b.png")]) == 2
    assert capsys.readouterr().err.endswith("b.png: cannot be written: No space left on device\n")
    assert not (tmp_path / "b.png").exists()
