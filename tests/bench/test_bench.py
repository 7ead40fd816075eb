"""Every benchmark at its small size, in its own process as scripts/bench.sh runs it, and the page that is made of them."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import document
import pytest

BENCH = Path(__file__).parents[2] / "scripts" / "bench"
SUBJECTS = sorted(path.stem for path in BENCH.glob("*.py") if path.stem != "document")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_subject_runs(subject: str, folder: Path) -> None:
    output = folder / f"{subject}.json"
    command = [sys.executable, str(BENCH / f"{subject}.py"), "--quick", "--threads", "1", "--output", str(output)]
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads(output.read_text())
    assert record["subject"] == subject
    assert record["command"] == f"python scripts/bench/{subject}.py --quick --threads 1"
    assert record["about"]
    assert record["tables"]
    for table in record["tables"]:
        assert table["rows"], f"{table['title']} is empty"
        assert all(len(row) == len(table["columns"]) for row in table["rows"])


@pytest.mark.slow
def test_the_page_of_all(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the tests above, in whose folder the records are."""
    written = sorted(path.stem for path in folder.glob("*.json"))
    assert written, "run it together with test_a_subject_runs"
    page = tmp_path / "benchmarks.md"
    monkeypatch.setattr(sys, "argv", ["document.py", str(folder), "--output", str(page)])
    document.main()
    text = page.read_text()
    for subject in written:
        assert f"\n## {subject}\n" in text
    for image in (line.split("(")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")):
        assert (tmp_path / image).is_file()


def test_every_subject_is_in_the_page_and_in_the_command() -> None:
    """A script that bench.sh forgets would never be run, and one that document.py forgets would stand at the end."""
    listed = re.findall(r"SUBJECTS=\(([a-z_ ]+)\)", (BENCH.parent / "bench.sh").read_text())[0].split()
    assert sorted(listed) == sorted(document.ORDER)
    assert set(SUBJECTS) <= set(listed)


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
    path = BENCH.parents[1] / "docs" / "explanation" / "benchmarks" / f"{subject}.json"
    if path.is_file():
        about = json.loads(path.read_text(encoding="utf-8"))["about"]
        assert re.fullmatch(written_about((BENCH / f"{subject}.py").read_text(encoding="utf-8")), about)


def test_the_page_in_docs_is_that_of_the_records_in_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Word for word: nobody writes into it by hand. (Pictures are drawn in test_side_by_side.py.)"""
    docs = BENCH.parents[1] / "docs" / "explanation"
    drawn: list[str] = []
    monkeypatch.setattr(document, "draw_lines", lambda series, axes, path: drawn.append(path.name))
    monkeypatch.setattr(sys, "argv", ["document.py", str(docs / "benchmarks"), "--output", str(tmp_path / "benchmarks.md")])
    document.main()
    assert (tmp_path / "benchmarks.md").read_text() == (docs / "benchmarks.md").read_text()
    assert drawn
    assert set(drawn) == {path.name for path in (docs / "images").glob("bench_*.png")}
