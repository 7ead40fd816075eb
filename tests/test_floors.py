"""The floors of docs/explanation/design.md: who may import whom, how light `import flexiclip` is, how large files may grow."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_FILE, MAX_FUNCTION = 350, 60  # lines

# unit -> the units it may import, besides itself. `.` is flexiclip/__init__.py, which holds the public names.
CONFIG = {"arrays", "config", "draws", "errors", "files", "unreadable"}
PARTS = {"models", "data", "losses", "schedules"}
FLOORS: dict[str, set[str]] = {
    "errors": set(),
    "arrays": set(),
    "draws": set(),
    "files": {"errors"},
    "unreadable": set(),
    "config": {"errors"},
    **dict.fromkeys(PARTS, CONFIG),
    "bundle": CONFIG | PARTS,
    "train": CONFIG | PARTS | {"bundle"},
    "imports": CONFIG | PARTS | {"bundle"},
    "export": CONFIG | PARTS | {"bundle"},
    "plan": CONFIG | PARTS | {"bundle"},
    "flexiclip_eval": CONFIG | PARTS | {"bundle", "."},
    "flexiclip_recipes": set(),
    ".": CONFIG | PARTS | {"bundle"},
    "cli": CONFIG | PARTS | {"bundle", "train", "imports", "export", "plan", "flexiclip_eval", "flexiclip_recipes", "."},
    "__main__": {"cli", "errors", "files"},
}
PACKAGES = {"flexiclip": ROOT / "flexiclip", "flexiclip_eval": ROOT / "eval", "flexiclip_recipes": ROOT / "recipes"}
CODE = [path for folder in (*PACKAGES.values(), ROOT / "scripts") for path in sorted(folder.rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def module_name(path: Path) -> str:
    """The dotted name under which a file is imported once installed."""
    for package, folder in PACKAGES.items():
        if path.is_relative_to(folder):
            parts = path.relative_to(folder).with_suffix("").parts
            return ".".join((package, *(part for part in parts if part != "__init__")))
    return path.stem


def unit_of(module: str) -> str:
    """The floor's unit that a dotted module name belongs to: flexiclip.data.plan -> data, flexiclip -> `.`."""
    top, *rest = module.split(".")
    return (rest or ["."])[0] if top == "flexiclip" else top


def imports(source: str, module: str, package: bool) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, at the top or inside a function, relative ones resolved."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".") if package else module.split(".")[:-1]
            start = parents[: len(parents) - node.level + 1] if node.level else []
            source_module = ".".join((*start, *filter(None, [node.module])))
            if (
                source_module == "flexiclip"
            ):  # `from flexiclip import data` names a unit, `from flexiclip import load_model` does not
                units = {alias.name for alias in node.names} & set(FLOORS)
                yield from ((node.lineno, f"flexiclip.{unit}") for unit in units)
            yield node.lineno, source_module


def violations(source: str, path: Path) -> list[str]:
    """Imports of `source`, standing at `path`, that go up or across."""
    module = module_name(path)
    allowed = FLOORS[unit_of(module)] | {unit_of(module)}
    found = []
    for line, name in imports(source, module, path.name == "__init__.py"):
        ours = name.split(".")[0] in PACKAGES
        if name.split(".")[0] == "eval":
            found.append(f"{path}:{line}: import it as flexiclip_eval, never as `eval`")
        elif ours and unit_of(name) not in allowed and not (unit_of(name) == "." and path.parts[-2] != "flexiclip"):
            found.append(f"{path}:{line}: {unit_of(module)} imports {name}")
    return found


@pytest.mark.parametrize("path", [p for p in CODE if "scripts" not in p.parts], ids=module_name)
def test_imports_go_down(path):
    unit = unit_of(module_name(path))
    assert unit in FLOORS, f"{path} stands on no floor: add it to docs/explanation/design.md and to FLOORS"
    assert violations(path.read_text(encoding="utf-8"), path) == []


@pytest.mark.parametrize(
    ("place", "line", "count"),
    [
        ("flexiclip/models/clip.py", "from flexiclip.data.plan import Plan", 1),
        ("flexiclip/models/clip.py", "def f():\n    import flexiclip.train.loop", 1),
        ("flexiclip/models/weights/timm.py", "from ...data import plan", 1),
        ("flexiclip/models/weights/timm.py", "from ..flexivit import FlexiViT", 0),
        ("flexiclip/models/clip.py", "from flexiclip import data", 1),
        ("flexiclip/train/loop.py", "import flexiclip_eval.report.files", 1),
        ("flexiclip/schedules.py", "from flexiclip.errors import UserError", 0),
        ("flexiclip/schedules.py", "from flexiclip import load_model", 1),
        ("eval/run.py", "from flexiclip.train import loop", 1),
        ("eval/run.py", "from .report import write", 0),
        ("eval/run.py", "from flexiclip import load_model", 0),
        ("eval/run.py", "import eval.report", 1),
        ("flexiclip/cli/__init__.py", "from flexiclip_eval import run", 0),
    ],
)
def test_the_walk_sees_what_it_should(place, line, count):
    assert len(violations(line, ROOT / place)) == count


@pytest.mark.parametrize("path", CODE + TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_are_small(path):
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= MAX_FILE
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    long = {f.name: lines for f in functions if (lines := (f.end_lineno or f.lineno) - f.lineno + 1) > MAX_FUNCTION}
    assert long == {}


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is_for(path):
    source = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(source)) or not source.strip()


@pytest.mark.parametrize("module", ["flexiclip", "flexiclip.__main__", "flexiclip.config"])
def test_light_to_import(module):
    """The help text and a typo in a recipe must not wait for torch and its friends."""
    heavy = {"torch", "numpy", "PIL", "deepspeed", "open_clip", "transformers", "matplotlib", "webdataset", "tensorboard"}
    code = f"import sys, {module}; print(*sorted({heavy!r} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert loaded.stdout.split() == []


def test_eval_refuses_its_bare_name():
    ran = subprocess.run([sys.executable, "-c", "import eval"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert ran.returncode == 1
    assert "flexiclip_eval" in ran.stderr.splitlines()[-1]
