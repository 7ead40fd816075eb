"""Every reader of files from elsewhere gives a value or its documented error: seeds, past findings, and mutations of both.

The inputs run in a process of their own, under the rules of scripts/fuzz/guard.py: at most 1 GB and 10 s per input, nothing
touched outside its folder, no process, no socket, no pickle. The corpus holds every finding so far, cut down to what it needs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORPUS = Path(__file__).parent / "corpus"
MUTATIONS = {"index": 200, "samples": 200, "recipe": 200, "weights": 100}  # per target


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.fuzz", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("target", MUTATIONS)
def test_seeds_past_findings_and_mutations(target: str, tmp_path: Path) -> None:
    done = fuzz(target, "--smoke", str(MUTATIONS[target]), "--output", str(tmp_path))
    findings = {path.name: path.read_text()[-2000:] for path in tmp_path.glob("**/findings/*.txt")}
    assert done.returncode == 0, (done.stdout, done.stderr[-3000:], findings)
    outcomes = json.loads((tmp_path / target / "stats.json").read_text())
    corpus = len(list((CORPUS / target).glob("*")))
    assert sum(outcomes.values()) >= MUTATIONS[target] + corpus + 20, "every input was run"
    kinds = {outcome.partition(":")[0] for outcome in outcomes}
    assert kinds == {"value", "refused"}, "the inputs are neither all good nor all bad"
    assert len(outcomes) > 5, "they get deeper than the front door"


@pytest.mark.slow
@pytest.mark.parametrize("target", MUTATIONS)
def test_one_minute(target: str, tmp_path: Path) -> None:
    done = fuzz(target, "--minutes", "1", "--seed", "2", "--output", str(tmp_path))
    print(done.stdout)
    assert done.returncode == 0, (done.stdout, done.stderr[-3000:])
