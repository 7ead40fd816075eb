"""Reads and writes record.yaml: for each module the number of mutants, their results, and the mutants that no test noticed.

Each of the latter has a verdict: `open`, or `equivalent: reason` if no test can tell the mutant from the source. Verdicts are
written by hand. They are kept as long as the mutant's line does not change.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from scripts.mutation.core import HERE, MUTANTS, ROOT, TREE, Module

RECORD = HERE / "record.yaml"
SUMMARY = ROOT / "docs" / "mutation.json"
"""The counts of the record, for readers and other programs."""

HEADER = """\
# What scripts/mutation.sh found: mutants of the core that no test noticed. Only the verdicts are written by hand:
# `open`, or `equivalent: reason`. The score counts killed and timed out against all but the equivalent ones.
"""

CAUGHT = ("killed", "timeout")

SAME = {
    r", strict=\w+": "strict=True states an invariant of ours: the two are equally long by construction",
    r"encoding=\"(utf-8|UTF-8)\"": "names of encodings have no case",
}
"""Pattern -> reason. A mutant that changes only a match of the pattern is equivalent, for this reason."""


def read() -> dict[str, dict[str, Any]]:
    """Return module -> its entry."""
    return yaml.safe_load(RECORD.read_text()) or {} if RECORD.exists() else {}


def write(entries: dict[str, dict[str, Any]], order: list[str]) -> None:
    """Write all entries, in the order of core.yaml. Entries of modules that are no longer in the core are dropped."""
    kept = {path: entries[path] for path in order if path in entries}
    RECORD.write_text(HEADER + yaml.safe_dump(kept, sort_keys=False, width=1000, allow_unicode=True))
    SUMMARY.write_text(json.dumps(summary(kept), indent=2) + "\n")


def summary(entries: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the number of mutants that were killed, survived and are equivalent, in all and for each module.

    A mutant that ran out of time counts as killed. `survived` leaves out the equivalent ones.
    """
    modules = {}
    for path, entry in entries.items():
        equivalent = sum(survivor["verdict"].startswith("equivalent: ") for survivor in entry["survivors"])
        killed = sum(entry.get(status, 0) for status in CAUGHT)
        modules[path] = {"killed": killed, "survived": len(entry["survivors"]) - equivalent, "equivalent": equivalent}
    totals = {key: sum(counts[key] for counts in modules.values()) for key in ("killed", "survived", "equivalent")}
    return {**totals, "modules": modules}


def meta(module: Module) -> Path:
    """Return the file of mutmut's own results for a module."""
    return MUTANTS / (module.in_tree + ".meta")


def results(module: Module) -> dict[str, str]:
    """Return mutant -> mutmut's word for its result, `not checked` for those that have not run yet."""
    from mutmut.stats import status_by_exit_code

    if not meta(module).exists():
        return {}
    codes = json.loads(meta(module).read_text())["exit_code_by_key"]
    return {name: status_by_exit_code[code] for name, code in codes.items()}


def entry(module: Module, before: dict[str, Any]) -> dict[str, Any]:
    """Return the entry of a module whose mutants have all been run."""
    ended = results(module)
    counts = Counter(ended.values())
    verdicts = {_place(survivor): survivor["verdict"] for survivor in before.get("survivors", [])}
    survivors = []
    for name, status in ended.items():
        if status not in CAUGHT:
            survivor = change(name, module)
            survivor["verdict"] = verdicts.get(_place(survivor)) or first_verdict(survivor["was"], survivor["now"])
            survivors.append(survivor if status == "survived" else {**survivor, "status": status})
    caught = sum(counts[status] for status in CAUGHT)
    return {
        "mutants": len(ended),
        **{status.replace(" ", "_"): counts[status] for status in sorted(counts)},
        "score": score(caught, survivors),
        "survivors": survivors,
    }


def first_verdict(was: str, now: str) -> str:
    """Return the verdict on a mutant before it has been looked at."""
    for pattern, reason in SAME.items():
        if len({re.sub(pattern, "", line).replace(", )", ")") for line in (was, now)}) == 1:
            return f"equivalent: {reason}"
    return "open"


def score(caught: int, survivors: list[dict[str, Any]]) -> float:
    """Return the share of noticed mutants among those that are not equivalent, in percent."""
    missed = sum(not survivor["verdict"].startswith("equivalent: ") for survivor in survivors)
    return round(100 * caught / (caught + missed), 1) if caught + missed else 100.0


def change(name: str, module: Module) -> dict[str, str]:
    """Return the function that a mutant changes, and its lines before and after."""
    from mutmut.mutation.diff_apply import get_diff_for_mutant
    from mutmut.utils.format_utils import orig_function_and_class_names_from_key

    with _inside(TREE):
        lines = get_diff_for_mutant(name, path=module.in_tree).splitlines()[2:]
    function, owner = orig_function_and_class_names_from_key(name)
    was, now = (" ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "-+")
    return {"function": f"{owner}.{function}" if owner else function, "was": was, "now": now}


def _place(survivor: dict[str, Any]) -> tuple[str, str, str]:
    return survivor["function"], survivor["was"], survivor["now"]


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
