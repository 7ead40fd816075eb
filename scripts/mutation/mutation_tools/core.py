"""The core: the modules that are mutated, and the mirrored test files of each (core.yaml)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

HERE = Path(__file__).parents[1]
ROOT = HERE.parents[1]
CORE = HERE / "core.yaml"
TREE = ROOT / ".mutation"
"""What mutmut works on: a copy of the repository, see tree.py."""

MUTANTS = TREE / "mutants"


@dataclass(frozen=True)
class Module:
    """A module of the core. All paths are relative to the root of the repository."""

    path: str
    tests: tuple[str, ...]
    """Test files; one with `::` is one test."""

    @property
    def in_tree(self) -> str:
        """The path under which Python imports the module: eval/ is installed as flexiclip_eval."""
        return "flexiclip_eval/" + self.path.removeprefix("eval/") if self.path.startswith("eval/") else self.path

    @property
    def ranks(self) -> bool:
        """Whether a test starts ranks: their imports are then done once, before the first mutant."""
        return any(test.startswith("tests/train/") for test in self.tests)


def modules() -> list[Module]:
    """The modules in the order of core.yaml."""
    groups = yaml.safe_load(CORE.read_text())
    return [Module(path, tuple(tests)) for group in groups.values() for path, tests in group.items()]


def digest(paths: Iterable[str]) -> str:
    """Twelve hexadecimal digits of the sha256 of the contents of files, paths relative to the root."""
    contents = [(ROOT / path.partition("::")[0]).read_bytes() for path in paths]
    return hashlib.sha256(b"\0".join(contents)).hexdigest()[:12]
