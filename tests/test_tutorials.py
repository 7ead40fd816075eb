"""The tutorials, command after command as a reader types them, in an empty folder. Only the installation is left out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kit.pages import ROOT, Block, blocks

SET_UP = ("pip install", "python3 -m venv", "source ")
TUTORIALS = ("first-run", "evaluate-your-model", "ship-an-encoder", "train-on-your-shards", "make-your-clip-flexible")
"""In this order: the second and the third go on where the first one ended, and the last one where the fourth did."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tutorials")


def test_every_tutorial_is_here() -> None:
    assert {path.stem for path in (ROOT / "docs" / "tutorials").glob("*.md")} == set(TUTORIALS)


@pytest.mark.slow
@pytest.mark.parametrize("name", TUTORIALS)
def test_the_tutorial_works(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    monkeypatch.setenv("PATH", programs)
    monkeypatch.delenv("FLEXICLIP_DATA", raising=False)
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks(ROOT / "docs" / "tutorials" / f"{name}.md"):
        if block.title:
            Path(block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            exec(compile("\n" * block.line + block.text, str(block.page), "exec"), names)
        elif block.language == "bash" and block.info != "skip":
            run(block)


def run(block: Block) -> None:
    lines = [line for line in block.text.splitlines() if not line.startswith(SET_UP)]
    ran = subprocess.run(["bash", "-euo", "pipefail", "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"{block}\n{ran.stdout[-2000:]}{ran.stderr[-4000:]}"
