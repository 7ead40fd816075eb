"""The floors of docs/explanation/design.md: who may import whom, how light `import flexiclip` is, how large files may grow."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_FILE, MAX_FUNCTION = 400, 60  # lines

# unit -> the units it may import, besides itself. `.` is flexiclip/__init__.py, which holds the public names.
CONFIG = {"config", "draws", "errors", "files", "libraries", "model_source", "progress", "tensor_files", "text_tables"}
PARTS = {"models", "data", "losses", "schedules"}
WHOLE = CONFIG | PARTS | {"distributed", "model_folder"}
FLOORS: dict[str, set[str]] = {
    "errors": set(),
    "draws": set(),
    "distributed": set(),
    "progress": set(),
    "text_tables": set(),
    "libraries": {"errors"},
    "files": {"errors", "libraries"},
    "model_source": {"errors", "files"},
    "tensor_files": {"errors", "files", "libraries"},
    "config": {"errors", "libraries"},
    **dict.fromkeys(PARTS, CONFIG | {"distributed"}),
    "datasets": {"errors", "files", "libraries"},
    "model_folder": CONFIG | PARTS,
    ".": WHOLE | {"commands"},
    "formats": WHOLE,
    "train": WHOLE,
    "plan": WHOLE,
    "export": WHOLE | {"formats"},
    "flexiclip_recipes": set(),
    "flexiclip_eval": WHOLE | {".", "formats", "export"},
    "commands": WHOLE | {".", "train", "plan", "formats", "export", "flexiclip_eval"},
    "cli": WHOLE | {".", "commands", "datasets", "train", "plan", "formats", "export", "flexiclip_eval", "flexiclip_recipes"},
    "__main__": {"cli", "errors", "files"},
}
PACKAGES = {"flexiclip": ROOT / "flexiclip", "flexiclip_eval": ROOT / "eval", "flexiclip_recipes": ROOT / "recipes"}
SCRIPTS = ROOT / "scripts"
CODE = [path for folder in (*PACKAGES.values(), SCRIPTS) for path in sorted(folder.rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))

# Modules without a test file of their name, and why.
SETTINGS = {f"flexiclip.config.schema.{section}" for section in ("data", "model", "train")}  # tests/config/test_validate.py


def module_name(path: Path) -> str:
    """The dotted name under which a file is imported: a package once installed, scripts in the root of the repository."""
    for package, folder in {**PACKAGES, "scripts": SCRIPTS}.items():
        if path.is_relative_to(folder):
            parts = path.relative_to(folder).with_suffix("").parts
            return ".".join((package, *(part for part in parts if part != "__init__")))
    raise ValueError(f"{path} is neither in a package nor in scripts")


def unit_of(module: str) -> str:
    """The floor's unit that a dotted module name belongs to: flexiclip.data.order -> data, flexiclip -> `.`."""
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
        if name.split(".")[0] == "scripts":
            found.append(f"{path}:{line}: scripts are not installed")
        elif name.split(".")[0] == "eval":
            found.append(f"{path}:{line}: import it as flexiclip_eval, never as `eval`")
        elif ours and unit_of(name) not in allowed and not (unit_of(name) == "." and path.parts[-2] != "flexiclip"):
            found.append(f"{path}:{line}: {unit_of(module)} imports {name}")
    return found


@pytest.mark.parametrize("path", [p for p in CODE if not p.is_relative_to(SCRIPTS)], ids=module_name)
def test_imports_go_down(path):
    unit = unit_of(module_name(path))
    assert unit in FLOORS, f"{path} stands on no floor: add it to docs/explanation/design.md and to FLOORS"
    assert violations(path.read_text(encoding="utf-8"), path) == []


@pytest.mark.parametrize(
    ("place", "line", "count"),
    [
        ("flexiclip/models/clip.py", "from flexiclip.data.order import Plan", 1),
        ("flexiclip/models/clip.py", "def f():\n    import flexiclip.train.trainer", 1),
        ("flexiclip/models/text/base.py", "from ...data import order", 1),
        ("flexiclip/models/text/base.py", "from ..flexivit import FlexiViT", 0),
        ("flexiclip/formats/timm_reader.py", "from flexiclip.export.card import model_card", 1),
        ("flexiclip/models/clip.py", "from flexiclip import data", 1),
        ("flexiclip/train/trainer.py", "import flexiclip_eval.report.files", 1),
        ("flexiclip/schedules.py", "from flexiclip.errors import UserError", 0),
        ("flexiclip/schedules.py", "from flexiclip import load_model", 1),
        ("eval/run.py", "from flexiclip.train import trainer", 1),
        ("eval/run.py", "from .report import write", 0),
        ("eval/run.py", "from flexiclip import load_model", 0),
        ("eval/run.py", "import eval.report", 1),
        ("eval/run.py", "from scripts.pages import markdown_table", 1),
        ("flexiclip/cli/__init__.py", "from flexiclip_eval import run", 0),
    ],
)
def test_the_walk_sees_what_it_should(place, line, count):
    assert len(violations(line, ROOT / place)) == count


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The rings of names that reach each other: strongly connected sets of two or more."""
    reach = {name: set(targets) for name, targets in edges.items()}
    for middle in reach:
        for targets in reach.values():
            if middle in targets:
                targets |= reach[middle]
    rings = {
        frozenset(other for other in targets if name in reach.get(other, ()))
        for name, targets in reach.items()
        if name in targets
    }
    return sorted(sorted(ring) for ring in rings if len(ring) > 1)


def neighbours(package: str) -> dict[str, set[str]]:
    """Each module and folder that is directly inside a package, with those that it imports."""
    depth, edges = package.count(".") + 1, dict[str, set[str]]()
    for path in CODE:
        module = module_name(path)
        if module.startswith(f"{package}."):
            inside = module.split(".")[depth]
            named = (name for _, name in imports(path.read_text(encoding="utf-8"), module, path.name == "__init__.py"))
            parts = (name.split(".") for name in named if name.startswith(f"{package}."))
            edges.setdefault(inside, set()).update({part[depth] for part in parts} - {inside})
    return {name: targets & edges.keys() for name, targets in edges.items()}


FOLDERS = sorted({module_name(path) for path in CODE if path.name == "__init__.py"})


@pytest.mark.parametrize("package", FOLDERS)
def test_no_modules_or_folders_import_each_other_in_a_circle(package):
    assert circles(neighbours(package)) == []


def test_circles_are_found_by_hand():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": {"d"}, "c": {"d"}, "d": set()}) == []
    assert neighbours("flexiclip")["model_folder"] >= {"models", "data", "config"}
    assert "optim" not in neighbours("flexiclip")["train"]


@pytest.mark.parametrize("path", CODE + TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_small(path):
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= MAX_FILE
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    long = {f.name: lines for f in functions if (lines := (f.end_lineno or f.lineno) - f.lineno + 1) > MAX_FUNCTION}
    assert long == {}


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is_for(path):
    source = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(source)) or not source.strip()


def files_of_tests(path: Path) -> list[str]:
    """The names of a module's test files: test_NAME.py, test_NAME_SUFFIX.py, or these with the folder or the package in front."""
    package = "eval" if path.is_relative_to(ROOT / "eval") else ""
    inside = path.relative_to(PACKAGES["flexiclip_eval" if package else "flexiclip"])
    name = path.stem.strip("_")
    longer = [other.stem for other in path.parent.glob("*.py") if other.stem.startswith(f"{name}_")]  # page_data beside page
    found = []
    for place in sorted((ROOT / "tests" / package / inside).parent.glob("test_*.py")):
        for front in {"test_", f"test_{path.parent.name}_", f"test_{package}_" if package else "test_"}:
            said = place.stem.removeprefix(front) if place.stem.startswith(front) else ""
            theirs = any(said == other or said.startswith(f"{other}_") for other in longer)
            if (said == name or said.startswith(f"{name}_")) and not theirs:
                found.append(place.name)
    return found


def test_every_module_has_a_test_file_of_its_name() -> None:
    """CONTRIBUTING.md has the rule. Packages re-export what their modules define."""
    modules = [path for path in CODE if not path.is_relative_to(SCRIPTS) and not path.is_relative_to(ROOT / "recipes")]
    missing = [module_name(path) for path in modules if path.name != "__init__.py" and not files_of_tests(path)]
    assert sorted(missing) == sorted(SETTINGS)


def test_files_of_tests_are_found_by_hand() -> None:
    assert files_of_tests(ROOT / "eval" / "report" / "page.py") == ["test_page.py", "test_page_browser.py"]
    assert files_of_tests(ROOT / "eval" / "report" / "files.py") == ["test_report_files.py"]
    assert files_of_tests(ROOT / "eval" / "models" / "onnx.py") == ["test_eval_onnx.py"]
    assert files_of_tests(ROOT / "flexiclip" / "__main__.py") == ["test_main.py"]
    assert files_of_tests(ROOT / "flexiclip" / "train" / "check.py") == []


@pytest.mark.parametrize("module", ["__main__", "commands", "config", "model_source", "train"])
def test_light_to_import(module):
    """The help text and a typo in a recipe must not wait for torch and its friends."""
    heavy = {"torch", "numpy", "PIL", "deepspeed", "open_clip", "transformers", "matplotlib", "webdataset", "tensorboard"}
    code = f"import sys, flexiclip.{module}; print(*sorted({heavy!r} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert loaded.stdout.split() == []


def test_eval_refuses_its_bare_name():
    ran = subprocess.run([sys.executable, "-c", "import eval"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert ran.returncode == 1
    assert "flexiclip_eval" in ran.stderr.splitlines()[-1]
