"""The folder `eval/` must be imported, and is checked by mypy, as the package that is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

WRONG = """
from flexiclip_eval.nonesuch import gather
from flexiclip_eval.rows import nothing
from flexiclip_eval import evaluate_suites

evaluate_suites([], [], suite="openmoji")
"""


def test_the_bare_name_is_refused() -> None:
    done = subprocess.run([sys.executable, "-c", "import eval"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "import flexiclip_eval, not eval" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_mypy_finds_a_wrong_name_and_a_wrong_call(tmp_path: Path) -> None:
    """It would take eval/ for a package without types if it did not know the name under which it is installed."""
    (tmp_path / "wrong.py").write_text(WRONG)
    command = [sys.executable, "-m", "mypy", str(tmp_path / "wrong.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = [line.split(": error: ")[1] for line in done.stdout.splitlines() if ": error: " in line]
    assert ["[import-not-found]" in found[0], "[attr-defined]" in found[1], "[call-arg]" in found[2]] == [True] * 3, done
