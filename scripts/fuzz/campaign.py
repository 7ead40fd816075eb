"""Runs one worker after the other until the time is over, and reports what they found.

A worker that dies, hangs or runs out of memory is replaced, and its last input becomes a finding. A finding is run again in a
fresh process before it counts, and its input is reduced to what is needed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from scripts.fuzz.guard import Outcome
from scripts.fuzz.worker import save_finding

COMMAND = [sys.executable, "-m", "scripts.fuzz"]
_HANG_CPU, _HANG_WALL = 15.0, 120.0  # a worker hangs after this many seconds on one input
_START = 900.0  # seconds that a worker has for imports and seeds


@dataclass
class Result:
    """The result of a campaign. outcomes: how often each occurred. findings: saved inputs that a second run confirmed."""

    target: str
    engine: str
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    coverage: int | None = None
    findings: list[Path] = field(default_factory=list)
    unconfirmed: list[Path] = field(default_factory=list)

    def __str__(self) -> str:
        runs = sum(self.outcomes.values())
        edges = "" if self.coverage is None else f", {self.coverage} edges covered"
        speed = f"{runs / max(self.seconds, 1):.0f} per second ({self.engine}{edges})"
        lines = [
            f"{self.target}: {runs} executions in {self.seconds:.0f} s, {speed}",
            *(f"  {kind:<24} {count:>9} in {distinct} kinds" for kind, count, distinct in _by_error(self.outcomes)),
            f"  findings: {len(self.findings)}" + (f", not met again: {len(self.unconfirmed)}" if self.unconfirmed else ""),
            *(f"    {path}" for path in self.findings + self.unconfirmed),
        ]
        return "\n".join(lines)


def _by_error(outcomes: Counter[str]) -> list[tuple[str, int, int]]:
    """Return (value or type of error, number of inputs, number of distinct messages), most frequent first."""
    counts: Counter[str] = Counter()
    distinct: Counter[str] = Counter()
    for outcome, count in outcomes.items():
        kind, _, label = outcome.partition(": ")
        name = "value" if kind == "value" else f"{kind} {label.partition(':')[0]}"
        counts[name] += count
        distinct[name] += 1
    return [(name, count, distinct[name]) for name, count in counts.most_common()]


def default_engine() -> str:
    """Return "atheris" if it is installed, else "blind"."""
    return "atheris" if find_spec("atheris") else "blind"


def run(target: str, minutes: float, seed: int, folder: Path, engine: str) -> Result:
    """Fuzz a target for this many minutes. Findings go into `folder`; those of an earlier run there are removed."""
    shutil.rmtree(folder / target, ignore_errors=True)
    folder = folder / target
    folder.mkdir(parents=True)
    result, life = Result(target, engine), 0
    started = time.monotonic()
    while (left := started + 60 * minutes - time.monotonic()) > 0:
        died = _one_life(target, folder, seed + life, left, engine)
        life += 1
        _take_stats(result, folder)
        if died is not None:
            save_finding(folder / "findings", died, (folder / "current").read_bytes())
    result.seconds = time.monotonic() - started
    for path in sorted((folder / "findings").glob("*")):
        if path.suffix != ".txt":
            confirmed = _confirm(target, path, folder)
            (result.findings if confirmed else result.unconfirmed).append(path)
    return result


def smoke(target: str, mutations: int, seed: int, folder: Path) -> list[str]:
    """Run the seeds, the past findings and this many mutations in one worker. Returns the names of the findings."""
    shutil.rmtree(folder / target, ignore_errors=True)
    folder = folder / target
    folder.mkdir(parents=True)
    died = _one_life(target, folder, seed, 0.0, "blind", mutations)
    if died is not None:
        save_finding(folder / "findings", died, (folder / "current").read_bytes())
    return sorted(path.name for path in (folder / "findings").glob("*.txt"))


def _one_life(target: str, folder: Path, seed: int, seconds: float, engine: str, least: int = 0) -> Outcome | None:
    """Run one worker to its end. Returns the outcome of the input that killed it, if one did."""
    job = json.dumps({"name": target, "folder": str(folder), "seed": seed, "seconds": seconds, "engine": engine, "least": least})
    current = folder / "current"
    current.unlink(missing_ok=True)
    with (folder / "worker.log").open("ab") as log:
        worker = subprocess.Popen([*COMMAND, "--worker", job], stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
    begun, seen, cpu = time.monotonic(), (0.0, 0), 0.0
    try:
        while worker.poll() is None:
            time.sleep(0.2)
            stat = current.stat() if current.exists() else None
            now = (stat.st_mtime, stat.st_ino) if stat else (0.0, 0)
            if now != seen:
                seen, begun, cpu = now, time.monotonic(), _cpu(worker.pid)
            limit = _HANG_WALL if stat else _START
            if time.monotonic() - begun > limit or (stat and _cpu(worker.pid) - cpu > _HANG_CPU):
                worker.send_signal(signal.SIGKILL)
                worker.wait()
                if stat is None:
                    raise RuntimeError(f"the worker of {target} has not started after {_START:.0f} s")
                return Outcome("finding", "hang", f"no end after {time.monotonic() - begun:.0f} s")
    finally:
        if worker.poll() is None:
            worker.kill()
            worker.wait()
    if worker.returncode == 0:
        return None
    if not current.exists():
        log_tail = (folder / "worker.log").read_text(encoding="utf-8", errors="replace")[-3000:]
        raise RuntimeError(f"the worker of {target} cannot start:\n{log_tail}")
    return Outcome("finding", f"crash: exit {worker.returncode}", (folder / "worker.log").read_text(errors="replace")[-3000:])


def _take_stats(result: Result, folder: Path) -> None:
    stats = folder / "stats.json"
    if stats.exists():
        result.outcomes.update(json.loads(stats.read_text(encoding="utf-8")))
        stats.unlink()
    covered = re.findall(r"cov: (\d+)", (folder / "worker.log").read_text(encoding="utf-8", errors="replace"))
    if covered:
        result.coverage = max(map(int, covered))


def _confirm(target: str, path: Path, folder: Path) -> bool:
    """Return whether a finding occurs again in a fresh process. If it does, and the process survives it, reduce the input."""
    outcome = replay(target, path, folder)
    if outcome.kind == "finding" and not outcome.label.startswith(("crash", "hang", "slow")):
        _job("minimise", target, path, folder)
    return outcome.kind == "finding"


def replay(target: str, path: Path, folder: Path) -> Outcome:
    """Return the outcome of a saved input in a process of its own."""
    try:
        done = _job("replay", target, path, folder)
    except subprocess.TimeoutExpired:
        return Outcome("finding", "hang")
    if done.returncode:
        return Outcome("finding", f"crash: exit {done.returncode}", done.stderr[-3000:])
    return Outcome(**json.loads(done.stdout.splitlines()[-1]))


def _job(what: str, target: str, path: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    job = json.dumps({"name": target, "path": str(path), "folder": str(folder / what)})
    return subprocess.run([*COMMAND, f"--{what}", job], capture_output=True, text=True, timeout=_START + _HANG_WALL, check=False)


def _cpu(pid: int) -> float:
    """Return the seconds of processor time that a process has used."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
