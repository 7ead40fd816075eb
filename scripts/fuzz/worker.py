"""Runs inputs of a target in one process until its time is over, it has grown too large, or an input kills it.

Its folder then contains what the campaign needs: `current`, the last input; `stats.json`, the outcomes of the other inputs; and
`findings/`, an input and a report for each defect.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from scripts.fuzz.case import pack
from scripts.fuzz.guard import Outcome, Watch, address_space, execute, limit_memory
from scripts.fuzz.mutate import LARGEST, mutate
from scripts.fuzz.seeds import seeds
from scripts.fuzz.targets import Target, import_libraries, make_target

# The modules whose coverage guides the engine: our readers and Pillow's formats. PyYAML would be thirty times slower with it.
_INSTRUMENTED = ["flexiclip", "PIL"]
_GROWTH = 300 * 2**20  # bytes of growth after which a fresh process takes over, so that leaks do not add up to a finding
SECRET = "secret"
CORPUS = Path(__file__).resolve().parents[2] / "tests" / "fuzz" / "corpus"
"""Past findings that have been fixed, one folder per target."""


class Runner:
    """A target with its folder and rules, ready to run inputs. It works inside `folder`."""

    def __init__(self, name: str, folder: Path) -> None:
        self.root = folder / "root"
        outside = folder / "outside"
        for path in (self.root / "tmp", outside, folder / "findings"):
            path.mkdir(parents=True, exist_ok=True)
        (outside / SECRET).write_text("no input may read this", encoding="utf-8")
        os.environ |= {"TMPDIR": str(self.root / "tmp"), "XDG_CACHE_HOME": str(self.root / "cache"), "HF_HUB_OFFLINE": "1"}
        tempfile.tempdir = str(self.root / "tmp")
        warnings.simplefilter("ignore")
        self.target: Target = make_target(name)
        past = sorted((CORPUS / name).glob("*"))
        self.seeds = [pack(case) for case in seeds(name)] + [path.read_bytes() for path in past]
        self.watch = Watch(self.root, outside)

    def run(self, data: bytes) -> Outcome:
        """Run the target on one input under the rules."""
        reader = self.target.prepare(data, self.root / "case")
        return execute(reader, self.target.documented, self.watch)


class Recorder:
    """Runs inputs and records their outcomes."""

    def __init__(self, runner: Runner, folder: Path) -> None:
        self.runner, self.folder = runner, folder
        self.outcomes: Counter[str] = Counter()
        self._started = address_space()
        self._written = 0.0

    def __call__(self, data: bytes) -> Outcome:
        """Run one input. A finding is saved once per label."""
        data = bytes(data)
        (self.folder / "current").write_bytes(data)
        outcome = self.runner.run(data)
        self.outcomes[f"{outcome.kind}: {outcome.label}"] += 1
        if outcome.kind == "finding":
            save_finding(self.folder / "findings", outcome, data)
        if time.monotonic() - self._written > 1:
            self.write()
        return outcome

    def write(self) -> None:
        """Write stats.json, so that it appears as a whole."""
        aside = self.folder / "stats.part"
        aside.write_text(json.dumps(self.outcomes), encoding="utf-8")
        aside.replace(self.folder / "stats.json")
        self._written = time.monotonic()

    @property
    def too_large(self) -> bool:
        """Return whether a fresh process should take over from this one."""
        return address_space() - self._started > _GROWTH


def save_finding(folder: Path, outcome: Outcome, data: bytes) -> None:
    """Save an input and its report under a name made from the outcome's label, unless there is one already."""
    slug = re.sub(r"[^\w.]+", "-", outcome.label)[:60]
    path = folder / f"{slug}-{hashlib.sha256(outcome.label.encode()).hexdigest()[:6]}"
    if not path.exists():
        path.write_bytes(data)
        path.with_name(path.name + ".txt").write_text(f"{outcome.label}\n{outcome.detail}\n", encoding="utf-8", errors="replace")


def work(name: str, folder: Path, seed: int, seconds: float, engine: str, least: int = 0) -> None:
    """Run inputs for this many seconds. engine: atheris or blind. least: number of mutations that are run in any case."""
    if engine == "atheris":
        import atheris

        if name == "weights":
            import_libraries()  # before instrumenting: atheris would take minutes to instrument them
        with atheris.instrument_imports(include=_INSTRUMENTED):
            runner = Runner(name, folder)
            runner.run(runner.seeds[0])
    else:
        runner = Runner(name, folder)
        runner.run(runner.seeds[0])
    limit_memory()
    record = Recorder(runner, folder)
    if engine == "atheris":
        _guided(record, runner.seeds, folder, seed, seconds)
    else:
        _blind(record, runner.seeds, seed, seconds, least)
    record.write()


def _blind(record: Recorder, inputs: list[bytes], seed: int, seconds: float, least: int) -> None:
    """Run mutations of the seeds, and of every input that led to a new outcome."""
    rng, end = random.Random(seed), time.monotonic() + seconds
    pool = list(inputs)
    for data in inputs:
        record(data)
    tried = 0
    while (time.monotonic() < end and not record.too_large) or tried < least:
        tried += 1
        data = mutate(rng.choice(pool), rng, pool)
        before = len(record.outcomes)
        record(data)
        if len(record.outcomes) > before:
            pool.append(data)


def _guided(record: Recorder, inputs: list[bytes], folder: Path, seed: int, seconds: float) -> None:
    """Run libFuzzer's loop through atheris. Its corpus is kept for the next process, which goes on with it."""
    import atheris

    corpus, given = folder / "corpus", folder / "seeds"
    for path in (corpus, given):
        path.mkdir(exist_ok=True)
    for number, data in enumerate(inputs):
        (given / f"{number:03d}").write_bytes(data)

    def one(data: bytes) -> None:
        record(data)
        if record.too_large:
            record.write()
            os._exit(0)

    options: dict[str, object] = {"max_total_time": max(1, int(seconds)), "seed": seed or 1, "max_len": LARGEST, "len_control": 0}
    options |= {"rss_limit_mb": 0, "timeout": 3600, "verbosity": 1, "artifact_prefix": f"{folder}/"}
    arguments = [sys.argv[0], str(corpus), str(given), *(f"-{key}={value}" for key, value in options.items())]
    atheris.Setup(arguments, one, custom_mutator=_mutator(inputs))
    atheris.Fuzz()


def _mutator(inputs: list[bytes]) -> Callable[[bytes, int, int], bytes]:
    import atheris  # not `from atheris import Mutate`: Setup replaces this function

    def change(data: bytes, largest: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.1:
            return bytes(atheris.Mutate(data, largest))
        if rng.random() < 0.3:  # libFuzzer prefers short inputs, which are rarely complete
            data = rng.choice(inputs)
        return mutate(bytes(data), rng, inputs)[:largest]

    return change


def replay(name: str, path: Path, folder: Path) -> Outcome:
    """Return the outcome of a saved input, run in this process."""
    runner = Runner(name, folder)
    runner.run(runner.seeds[0])
    limit_memory()
    return runner.run(path.read_bytes())


def minimise(name: str, path: Path, folder: Path, seconds: float = 30.0) -> None:
    """Remove the parts of a saved input that its outcome does not need, in place."""
    runner = Runner(name, folder)
    runner.run(runner.seeds[0])
    limit_memory()
    data, end = path.read_bytes(), time.monotonic() + seconds
    label = runner.run(data).label
    size = len(data) // 2
    while size and time.monotonic() < end:
        at = 0
        while at < len(data) and time.monotonic() < end:
            shorter = data[:at] + data[at + size :]
            if runner.run(shorter).label == label:
                data = shorter
            else:
                at += size
        size //= 2
    path.write_bytes(data)
