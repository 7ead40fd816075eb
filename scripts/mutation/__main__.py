"""Run mutation tests of the core: mutmut changes one expression at a time, and a test has to fail for each change.

    python -m scripts.mutation                          every module of core.yaml that changed since its last record
    python -m scripts.mutation pi_resize schedules      the modules whose path contains one of the words
    python -m scripts.mutation --report                 only prints what the record says

scripts/mutation.sh does the same after it has made the environment. The command can be stopped at any time, and the next call
continues there: results are kept in .mutation/, and those of finished modules in scripts/mutation/record.yaml.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import resource
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from scripts.mutation import record
from scripts.mutation.core import IMPORTED, MUTANTS, TREE, Module, digest, modules
from scripts.mutation.tree import prepare

PRELOADED = "kit.preload"
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "DS_ACCELERATOR": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}


def main() -> int:
    """Test the modules that the command line names, then print one line per module. Returns the exit code."""
    arguments = parse()
    core = modules()
    chosen = [m for m in core if not arguments.module or any(fnmatch(m.path, f"*{word}*") for word in arguments.module)]
    if not chosen:
        print(f"mutation: no module of the core matches {' '.join(arguments.module)}", file=sys.stderr)
        return 2
    failed = [] if arguments.report else test_all(chosen, core, arguments)
    record.write(record.read(), [module.path for module in core])  # verdicts may have been written by hand since the last run
    report(chosen)
    for module in failed:
        hint = f"do its tests pass? pytest {' '.join(module.tests)}"
        print(f"mutation: {module.path}: mutmut stopped: {hint} (its output: {log_of(module.path)})", file=sys.stderr)
    return 1 if failed else 0


def test_all(chosen: list[Module], core: list[Module], arguments: argparse.Namespace) -> list[Module]:
    """Test the chosen modules one after the other. Returns those for which mutmut failed."""
    TREE.mkdir(exist_ok=True)
    with open(TREE / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"mutation: another run works in {TREE}: wait for its end")
        return [module for module in chosen if not tested(module, core, arguments)]


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", nargs="*", help="a part of a path, such as pi_resize or data/ (default: the whole core)")
    parser.add_argument("--workers", type=int, default=2, help="number of mutants that are tested at the same time (default: 2)")
    slack = "a mutant may run for 4 x (the time of its tests + SLACK_S), in seconds (default: 4)"
    parser.add_argument("--slack-s", type=float, default=4.0, help=slack)
    parser.add_argument("--fresh", action="store_true", help="forget earlier results of the chosen modules")
    parser.add_argument("--retest", action="store_true", help="test survivors again, even if no file has changed")
    parser.add_argument("--report", action="store_true", help="only print what the record says")
    return parser.parse_args()


def tested(module: Module, core: list[Module], arguments: argparse.Namespace) -> bool:
    """Test the mutants of a module that are due, and write its entry. Returns False if mutmut failed."""
    before = record.read().get(module.path, {})
    # The digests are taken before the run, because files may change meanwhile.
    version = {"source": digest([module.path]), "tests": digest(module.tests)}
    if version.items() <= before.items() and not arguments.fresh and not arguments.retest:
        return True
    began, used = time.monotonic(), cpu_seconds()
    prepare(module, arguments.slack_s)
    forget(module, everything=arguments.fresh, survivors=arguments.retest)
    print(f"{module.path}: ...", flush=True)
    if run_mutmut(module, arguments.workers) or "not checked" in record.results(module).values():
        return False
    entries = record.read()  # read again, because verdicts may have been written meanwhile
    before = entries.get(module.path, {})
    entries[module.path] = {**version, **record.entry(module, before)}
    record.write(entries, [m.path for m in core])
    took = f"{time.monotonic() - began:.0f} s, {cpu_seconds() - used:.0f} s of CPU"
    print(f"{module.path}: {line(entries[module.path])} ({took})", flush=True)
    return True


def cpu_seconds() -> float:
    """Return the CPU seconds of all child processes that have ended, and of their children."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def forget(module: Module, *, everything: bool, survivors: bool) -> None:
    """Mark results as due again: survivors if a test file changed, or if `survivors` is set; all results if `everything` is set.

    mutmut itself does this for functions that changed.
    """
    path, stamp = record.meta(module), record.meta(module).with_suffix(".tests")
    survivors = survivors or not stamp.exists() or stamp.read_text() != digest(module.tests)
    try:
        known = json.loads(path.read_text())
        kept = () if everything else (1, 3) if survivors else (0, 1, 3, 33, 36)
        codes = known["exit_code_by_key"]
        known["exit_code_by_key"] = {name: code if code in kept else None for name, code in codes.items()}
        path.write_text(json.dumps(known))
    except (FileNotFoundError, json.JSONDecodeError):  # a run that was killed may leave half a file
        path.unlink(missing_ok=True)
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(digest(module.tests))


def log_of(path: str) -> Path:
    """Return the file with mutmut's output for a module."""
    return TREE / "logs" / f"{path.replace('/', '.')}.log"


def run_mutmut(module: Module, workers: int) -> int:
    """Run `mutmut run` on the copy of the repository, with its output in a file. Returns its exit code."""
    environment = {
        **os.environ,
        **ENVIRONMENT,
        "PYTHONPATH": os.pathsep.join([str(MUTANTS), str(MUTANTS / "tests")]),
        "MUTATION_IMPORTED": str(IMPORTED),
        "MUTATION_PRELOAD": PRELOADED if module.ranks else "",
    }
    command = [str(Path(sys.executable).with_name("mutmut")), "run", "--max-children", str(workers)]
    log_of(module.path).parent.mkdir(exist_ok=True)
    with open(log_of(module.path), "w") as log:
        return subprocess.run(command, cwd=TREE, env=environment, stdout=log, stderr=log, check=False).returncode


def report(chosen: list[Module]) -> None:
    """Print one line per module, and one for all."""
    entries = record.read()
    caught, survivors = 0, []
    for module in chosen:
        found = entries.get(module.path)
        print(f"{module.path}: {line(found) if found else 'not tested yet'}")
        if found:
            caught += sum(found.get(status, 0) for status in record.CAUGHT)
            survivors += found["survivors"]
    total = caught + len(survivors)
    print(f"all: {total} mutants, {caught} noticed, {record.score(caught, survivors)} % of those that are not equivalent")


def line(found: dict[str, Any]) -> str:
    """Return a summary of a module's entry."""
    survivors = found["survivors"]
    opened = sum(survivor["verdict"] == "open" for survivor in survivors)
    noticed = sum(found.get(status, 0) for status in record.CAUGHT)
    counts = f"{found['mutants']} mutants, {noticed} noticed, {len(survivors) - opened} equivalent, {opened} open"
    return f"{counts}: {found['score']} %"


if __name__ == "__main__":
    sys.exit(main())
