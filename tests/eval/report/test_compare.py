"""`flexiclip compare`: one curve per model and width, a picture or a whole report, and what cannot be compared."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from flexiclip_eval import Row
from flexiclip_eval.report.compare import join
from flexiclip_eval.report.files import as_json, read_report, read_rows, write_report, write_whole
from flexiclip_eval.report.plots import plot_runs
from flexiclip_eval.report.table import ModelInfo, Report, label_of, runs_of
from flexiclip_eval.rows import TaskInfo
from kit.reports import RECALLS, full_report, small_report
from PIL import Image

from flexiclip.__main__ import main
from flexiclip.errors import UserError


def _colours(data: bytes) -> tuple[tuple[int, int], set[tuple[int, ...]]]:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return image.size, {colour for _, colour in image.getcolors(1 << 24) or () if isinstance(colour, tuple)}


def compare(*arguments: object) -> int:
    return main(["compare", *map(str, arguments)])


def test_runs_in_one_picture(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_report(small_report(0.9, trained=(6,)), tmp_path / "fixed")
    picture = tmp_path / "new" / "both.png"
    runs = [f"flexible={written}", f"fixed at 6={tmp_path}/fixed/results.json"]
    assert compare(*runs, "--output", picture) == 0
    size, colours = _colours(picture.read_bytes())
    assert size[0] > 600
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours
    with_star = picture.read_bytes()
    (tmp_path / "fixed" / "report.json").unlink()  # rows alone do not say where a model was trained
    assert compare(*runs, "--output", picture) == 0
    assert picture.read_bytes() != with_star
    assert capsys.readouterr().out.splitlines() == [str(picture)] * 2
    assert compare(*runs, "--metric", "acc9", "--output", picture) == 2
    assert "no row with a length has acc9; choose one of emoji acc1" in capsys.readouterr().err


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """The results of `flexiclip eval A B --widths 64 --output several`: two models, and two widths of the first."""
    models = [ModelInfo("vit", "runs/a", {}, (3, 6), width) for width in (64, 128)] + [ModelInfo("vit", "runs/b", {}, (6,))]
    task = TaskInfo("emoji", "zeroshot_retrieval", dict.fromkeys(RECALLS, 0.02), captions=240)
    report = Report("flexiclip eval", models=models)
    for number, model in enumerate(models):
        for seqhw in (6, 3):
            metrics = dict.fromkeys(RECALLS, 0.1 * (number + 1) + seqhw / 100)
            row = Row(
                "emoji", "vit", model.pretrained, task.task, metrics, "en", 249, seqhw, seqhw**2, 60 // seqhw, 60, 0.5, 99.0
            )
            report.add(replace(row, width=model.width, standard_errors=dict.fromkeys(RECALLS, 0.025)), task, {})
    write_report(report, tmp_path / "several")
    return tmp_path / "several"


def test_models_and_widths_of_one_file_are_curves_of_their_own(several: Path) -> None:
    """Each has its own points in the order of the lengths, and a label that says which model it is."""
    report = join([f"three={several}"])
    runs = runs_of(report, report.tasks[0])
    assert list(runs) == ["three: a [:64]", "three: a [:128]", "three: b"]
    values = [[(row.seqhw, round(row.metrics[RECALLS[1]], 2)) for row in rows] for rows in runs.values()]
    assert values == [[(6, 0.16), (3, 0.13)], [(6, 0.26), (3, 0.23)], [(6, 0.36), (3, 0.33)]]
    ordered = {label: sorted(rows, key=lambda row: row.seqhw or 0) for label, rows in runs.items()}
    (axis,) = plot_runs(ordered, RECALLS[1], chance=None, own={}).axes
    lines = [line for line in axis.get_lines() if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
    assert [line.get_ydata().round(2).tolist() for line in lines] == [[0.13, 0.16], [0.23, 0.26], [0.33, 0.36]]
    assert len({line.get_label() for line in lines}) == 3
    assert [list(runs_of(join([str(several)]), report.tasks[0]))][0] == ["vit runs/a [:64]", "vit runs/a [:128]", "vit runs/b"]


def test_the_same_model_in_two_files_is_two_curves(several: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("results.json", "report.json"):
        (other / name).write_bytes((several / name).read_bytes())
    report = join([str(several), str(other)])
    assert len({label_of(model) for model in report.models}) == 6
    assert list(runs_of(report, report.tasks[0]))[3:] == ["other: a [:64]", "other: a [:128]", "other: b"]


def test_a_report_of_finished_results(tmp_path: Path, several: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder gets a picture of each task and everything that `flexiclip eval` writes, with the names of the labels."""
    made, _ = full_report(tmp_path / "data")
    write_report(made, tmp_path / "full")
    out = tmp_path / "out"
    assert compare(f"x={several}", f"y={tmp_path}/full", "--output", out, "--table", "markdown,latex") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"report: {out}/report.html"
    assert f"picture: {out}/compare_emoji_image_retrieval_recall@5.png" in lines
    assert f"tables: {out}/results.tex" in lines
    rows = read_rows(out)
    assert len(rows) == 6 + 28
    originals = [*read_rows(several), *read_rows(tmp_path / "full")]
    assert [replace(row, label=None) for row in rows] == originals, "the numbers are those of the results"
    assert {row.label for row in rows} == {"x: a", "x: b", "y: flexible", *(row.label or "" for row in rows[-1:])}
    page = (out / "report.html").read_text()
    assert "Evaluation of 5 models on 2 data sets" in page
    table = (out / "results.md").read_text()
    assert "| x: b" in table
    assert "**39.0% ±2.5**" not in table
    assert "**36.0% ±2.5**" in table
    again = read_report(out)
    assert [choice.short for choice in again.cascades] == [3, 3]
    assert compare(f"x={several}", f"y={tmp_path}/full", "--output", tmp_path / "x.png") == 2
    assert "several data sets with a metric: choose one with --dataset, of emoji, toys" in capsys.readouterr().err
    assert (
        compare(f"x={several}", f"y={tmp_path}/full", "--dataset", "toys", "--metric", "acc1", "--output", tmp_path / "x.svg")
        == 0
    )
    assert b"y: flexible" in (tmp_path / "x.svg").read_bytes() or b"<path" in (tmp_path / "x.svg").read_bytes()


def test_what_cannot_be_compared_is_said_in_one_line(tmp_path: Path, several: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    write_whole(fewer / "results.json", json.dumps([as_json(replace(row, n=99)) for row in read_rows(several)]))
    for runs, said in (
        (["nameless.json"], "nameless.json: no such file; give the results.json of `flexiclip eval --output`"),
        ([f"a={tmp_path}/none.json"], "none.json: no such file"),
        ([f"={several}"], "write LABEL=RESULTS"),
        ([f"a={several}", f"a={fewer}"], "the label a is given twice"),
        ([f"a={several}", f"b={fewer}"], "emoji: the runs were scored on different numbers of images"),
    ):
        assert compare(*runs, "--output", tmp_path / "x.png") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
    (tmp_path / "results.json").write_text('[{"dataset": "a"}]')
    with pytest.raises(UserError, match=r"not a results\.json"):
        read_rows(tmp_path)
    (several / "report.json").write_text('{"models": [7]}')
    with pytest.raises(UserError, match=r"not a report\.json"):
        read_report(several)
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match="cannot write there"):
        write_report(small_report(), tmp_path / "taken")


def test_a_folder_with_an_equals_sign_needs_no_label(several: Path) -> None:
    moved = several.rename(several.with_name("lr=0.1"))
    assert list(runs_of(join([str(moved)]), TaskInfo("emoji", "zeroshot_retrieval", {})))[2] == "vit runs/b"
    assert list(runs_of(join([f"x={moved}"]), TaskInfo("emoji", "zeroshot_retrieval", {})))[2] == "x: b"


def test_compare_writes_what_the_ending_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], disk: Callable[[int], None]
) -> None:
    metrics = {"image_retrieval_recall@5": 0.5}
    rows = [Row("d", "m", "p", "zeroshot_retrieval", metrics, "en", 9, s, s * s, None, None, None, None) for s in (3, 6)]
    (tmp_path / "run").mkdir()
    write_whole(tmp_path / "run" / "results.json", json.dumps([as_json(row) for row in rows]))
    for name, start in (("a.png", b"\x89PNG"), ("a.SVG", b"<?xml")):
        assert compare(f"a={tmp_path}/run", "--output", tmp_path / name) == 0
        assert (tmp_path / name).read_bytes().startswith(start)
    capsys.readouterr()
    for wrong, said in ((f"{tmp_path}/a.png/b.png", "cannot write there"), (f"{tmp_path}/a.docx", "write a .docx picture")):
        assert compare(f"a={tmp_path}/run", "--output", wrong) == 2
        assert said in capsys.readouterr().err
    disk(100)
    assert compare(f"a={tmp_path}/run", "--output", tmp_path / "b.png") == 2
    assert capsys.readouterr().err.endswith("b.png: cannot be written: No space left on device\n")
    assert not (tmp_path / "b.png").exists()
