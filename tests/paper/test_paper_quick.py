"""`python -m scripts.paper` as scripts/paper.sh calls it, on real shards of coloured noise: every command of two studies runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from scripts.paper.studies import STUDIES

ROOT = Path(__file__).parents[2]


def _write(path: Path, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(count)
    with webdataset.TarWriter(str(path)) as tar:
        for i in range(count):
            image = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
            meta = {"captions": [f"thing number {i}", f"item {i}"], "category": "food"}
            tar.write({"__key__": f"s{i:04d}", "png": image, "txt": f"thing number {i}", "json": meta})


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "FLEXICLIP_DATA": str(folder / "data"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "scripts.paper", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_two_studies_from_shards_to_the_page(tmp_path: Path) -> None:
    for name in ("openmoji/train-0000", "fluent/train-0000"):
        _write(tmp_path / "data" / f"{name}.tar", 64)
    for name in ("openmoji/heldout-0000", "noto/seen-0000", "noto/heldout-0000"):
        _write(tmp_path / "data" / f"{name}.tar", 20)
    done = _run(tmp_path, "resizing", "matryoshka", "--quick", "--seeds", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    work = tmp_path / "build" / "paper-quick"
    assert "Prefixes of the embedding" in (work / "paper.md").read_text()
    record = json.loads((work / "resizing.json").read_text())
    assert list(record["seeds"]) == ["1"]
    again = _run(tmp_path, "resizing", "--quick", "--seeds", "1")
    assert "6 commands, 6 of them done before" in again.stdout


def test_an_unknown_study_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = _run(tmp_path, "resizin")
    assert done.returncode == 2
    names = ", ".join(study.name for study in STUDIES)
    assert done.stderr == f"error: resizin: no such study; did you mean resizing?: there are {names}\n"
