"""Every benchmark at its small size, in its own process as `python -m scripts.bench` runs it, and the page of their records."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.bench import page
from scripts.bench.subjects import SUBJECTS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "scripts" / "bench" / "subjects"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_subject_runs(subject: str, folder: Path) -> None:
    output = folder / f"{subject}.json"
    command = [sys.executable, "-m", f"scripts.bench.subjects.{subject}", "--quick", "--threads", "1", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads(output.read_text())
    assert record["subject"] == subject
    assert record["command"] == f"python -m scripts.bench.subjects.{subject} --quick --threads 1"
    assert record["about"]
    assert record["tables"]
    for table in record["tables"]:
        assert table["rows"], f"{table['title']} is empty"
        assert all(len(row) == len(table["columns"]) for row in table["rows"])


@pytest.mark.slow
def test_the_page_of_all(folder: Path, tmp_path: Path) -> None:
    """After the tests above, in whose folder the records are."""
    written = sorted(path.stem for path in folder.glob("*.json"))
    assert written, "run it together with test_a_subject_runs"
    page.write_page(folder, tmp_path / "benchmarks.md")
    text = (tmp_path / "benchmarks.md").read_text()
    for subject in written:
        assert f"\n## {subject}\n" in text
    for image in (line.split("(")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")):
        assert (tmp_path / image).is_file()


def test_every_module_is_a_subject() -> None:
    """A module that is not listed would never be run."""
    assert sorted(SUBJECTS) == sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


def test_an_unknown_subject_is_refused_before_anything_runs() -> None:
    command = [sys.executable, "-m", "scripts.bench", "losses", "nonesuch"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "nonesuch: no such subject: there are training_step, " in done.stderr


def written_about(source: str) -> str:
    """What a subject's script says that it compares, as a pattern: a value that is filled in may be any word."""
    tree = ast.parse(source)
    given = {n.targets[0].id: n.value for n in tree.body if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)}
    (about,) = [
        node.args[1]
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Record"
    ]
    value = given[about.id] if isinstance(about, ast.Name) else about
    pieces = value.values if isinstance(value, ast.JoinedStr) else [value]
    return "".join(re.escape(str(piece.value)) if isinstance(piece, ast.Constant) else r"\w+" for piece in pieces)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_record_in_docs_says_what_its_script_says(subject: str) -> None:
    """The words of a script that change are changed in its record too, which is not measured again for them."""
    path = ROOT / "docs" / "explanation" / "benchmarks" / f"{subject}.json"
    if path.is_file():
        about = json.loads(path.read_text(encoding="utf-8"))["about"]
        assert re.fullmatch(written_about((FOLDER / f"{subject}.py").read_text(encoding="utf-8")), about)


def test_the_page_in_docs_is_that_of_the_records_in_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Word for word: nobody writes into it by hand. (Pictures are drawn in test_bench_parts.py.)"""
    docs = ROOT / "docs" / "explanation"
    drawn: list[str] = []
    monkeypatch.setattr(page, "draw_lines", lambda series, axes, path: drawn.append(path.name))
    page.write_page(docs / "benchmarks", tmp_path / "benchmarks.md")
    assert (tmp_path / "benchmarks.md").read_text() == (docs / "benchmarks.md").read_text()
    assert drawn
    assert set(drawn) == {path.name for path in (docs / "images").glob("bench_*.png")}
