"""The mutation tests' list of the core against the tree, their rewriting of decorators against Python, and the score by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from scripts.mutation import record
from scripts.mutation.core import ROOT, modules
from scripts.mutation.tree import plain

WHOLE = ("flexiclip/losses",)
"""Folders whose every module with a function belongs to the core."""

SINGLE = (
    *(f"flexiclip/{name}.py" for name in ("schedules", "draws", "distributed", "model_folder", "model_source", "tensor_files")),
    *(f"flexiclip/models/{name}.py" for name in ("pi_resize", "flexivit")),
    *(f"flexiclip/data/{name}.py" for name in ("order", "batch", "dataset", "loader")),
    *(f"flexiclip/formats/{name}_reader.py" for name in ("big_vision", "open_clip", "timm", "transformers")),
    *(f"flexiclip/train/{name}.py" for name in ("step", "nonfinite", "engine", "deepspeed", "towers", "blocks")),
    *(f"flexiclip/train/{name}.py" for name in ("checkpoint", "checkpoint_writer", "stores", "remote_store", "resume")),
    "flexiclip/export/agreement.py",
)

DECORATED = """
import functools

@functools.lru_cache(maxsize=4)
def double(x: int) -> int:
    # a comment
    return 2 * x

class Box:
    def __init__(self, side):
        self.side = side

    @property
    def area(self):
        return self.side**2

    @functools.cached_property
    def volume(self): return self.side**3

    @staticmethod
    @functools.wraps(double)
    def twice(x):
        @functools.lru_cache
        def inner(y):
            return y + y
        return inner(x)

    @staticmethod
    def alone():
        return "alone"
"""


def test_core_names_every_module_and_test_file() -> None:
    listed = [module.path for module in modules()]
    assert len(listed) == len(set(listed))
    expected = {
        str(path.relative_to(ROOT))
        for folder in WHOLE
        for path in (ROOT / folder).glob("*.py")
        if path.name not in ("__init__.py", "base.py")  # protocols and tables
    }
    assert set(listed) >= expected | set(SINGLE)
    for module in modules():
        assert (ROOT / module.path).is_file()
        assert module.tests, module.path
        assert [test for test in module.tests if not (ROOT / test.partition("::")[0]).is_file()] == []


def test_record_is_of_the_core_and_gives_every_survivor_a_verdict() -> None:
    entries = record.read()
    assert set(entries) <= {module.path for module in modules()}
    for path, entry in entries.items():
        assert entry["mutants"] == sum(entry.get(status, 0) for status in record.CAUGHT) + len(entry["survivors"]), path
        for survivor in entry["survivors"]:
            assert survivor["verdict"] == "open" or survivor["verdict"].startswith("equivalent: "), (path, survivor)
        assert entry["score"] == record.score(sum(entry.get(status, 0) for status in record.CAUGHT), entry["survivors"]), path


def test_plain_decorators_do_what_decorators_do() -> None:
    def behaviour(source: str) -> list[Any]:
        names: dict[str, Any] = {}
        exec(source, names)
        box = names["Box"](3)
        names["double"](2), names["double"](2)
        kinds = [type(vars(names["Box"])[name]) for name in ("area", "volume", "twice", "alone")]
        return [names["double"].cache_info(), box.area, box.volume, vars(box), box.twice(5), box.alone(), *kinds]

    rewritten = plain(DECORATED)
    assert behaviour(rewritten) == behaviour(DECORATED)
    info = behaviour(rewritten)[0]
    assert (info.hits, info.misses, info.maxsize) == (1, 1, 4)
    assert [line.strip() for line in rewritten.split("\n") if "@" in line] == ["@staticmethod"], "mutmut knows this one"
    assert "# a comment" in rewritten


def test_first_verdict_of_what_cannot_matter() -> None:
    was = "for a, b in zip(x, y, strict=True):"
    for now in ("for a, b in zip(x, y, strict=False):", "for a, b in zip(x, y, strict=None):", "for a, b in zip(x, y, ):"):
        assert record.first_verdict(was, now).startswith("equivalent: ")
    for now in ("for a, b in zip(x, strict=True):", "for a, b in zip(None, y, strict=True):"):
        assert record.first_verdict(was, now) == "open"
    assert record.first_verdict('open(encoding="utf-8")', 'open(encoding="UTF-8")').startswith("equivalent: ")
    assert record.first_verdict('open(encoding="utf-8")', "open(encoding=None)") == "open"


def test_score_leaves_equivalent_mutants_out() -> None:
    survivors = [{"verdict": verdict} for verdict in ("open", "equivalent: the same sum", "open", "equivalent: never read")]
    assert record.score(6, survivors) == 75.0
    assert record.score(0, []) == 100.0


@pytest.mark.parametrize(
    ("word", "code", "said"), [("nowhere", 2, "no module of the core matches nowhere"), ("--help", 0, "--fresh")]
)
def test_command_line_of_mutation_tests(word: str, code: int, said: str) -> None:
    command = [sys.executable, "-m", "scripts.mutation", word]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ran.returncode, said in ran.stdout + ran.stderr) == (code, True), ran


def test_the_summary_counts_the_record() -> None:
    """docs/mutation.json: the file of the repository, and a case by hand."""
    assert json.loads(record.SUMMARY.read_text()) == record.summary(record.read())
    survivors = [{"verdict": "open"}, {"verdict": "equivalent: why"}, {"verdict": "equivalent: why"}]
    entries = {"a.py": {"killed": 5, "timeout": 2, "survivors": survivors}, "b.py": {"killed": 1, "survivors": []}}
    assert record.summary(entries) == {
        "killed": 8,
        "survived": 1,
        "equivalent": 2,
        "modules": {
            "a.py": {"killed": 7, "survived": 1, "equivalent": 2},
            "b.py": {"killed": 1, "survived": 0, "equivalent": 0},
        },
    }
