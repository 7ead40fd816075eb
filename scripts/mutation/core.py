"""Reads core.yaml, which lists the modules that are mutated and the test files of each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CORE = HERE / "core.yaml"
TREE = ROOT / ".mutation"
"""The copy of the repository that mutmut works on (tree.py)."""

MUTANTS = TREE / "mutants"
IMPORTED = MUTANTS / "imported"
"""The modules that the tests imported, one per line (hits.py)."""


@dataclass(frozen=True)
class Module:
    """A module of the core. All paths are relative to the root of the repository."""

    path: str
    tests: tuple[str, ...]
    """Test files. An entry with `::` is a single test."""

    @property
    def in_tree(self) -> str:
        """Return the path under which Python imports the module: eval/ is installed as flexiclip_eval."""
        return "flexiclip_eval/" + self.path.removeprefix("eval/") if self.path.startswith("eval/") else self.path

    @property
    def ranks(self) -> bool:
        """Return whether a test starts ranks. If so, their imports are done once, before the first mutant."""
        return any(test.startswith("tests/train/") for test in self.tests)


def modules() -> list[Module]:
    """Return the modules in the order of core.yaml."""
    groups = yaml.safe_load(CORE.read_text())
    return [Module(path, tuple(tests)) for group in groups.values() for path, tests in group.items()]


def digest(paths: Iterable[str]) -> str:
    """Return twelve hexadecimal digits of the sha256 of the files' contents. paths: relative to the root."""
    contents = [(ROOT / path.partition("::")[0]).read_bytes() for path in paths]
    return hashlib.sha256(b"\0".join(contents)).hexdigest()[:12]
