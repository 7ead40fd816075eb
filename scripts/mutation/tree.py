"""Makes the copy of the repository that mutmut works on, in .mutation/.

mutmut skips functions with decorators, which would leave out `pi_matrix`, every property and every `torch.no_grad()`. So the copy
replaces `@decorate` / `def f` by the equivalent `def f` / `f = decorate(f)`, in which mutmut sees a plain function.
"""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

from scripts.mutation.core import IMPORTED, MUTANTS, ROOT, TREE, Module

FOLDERS = {"flexiclip": "flexiclip", "eval": "flexiclip_eval", "recipes": "flexiclip_recipes"}
"""Folder of the repository -> name under which it is imported."""

KEPT = ("staticmethod", "classmethod")
"""Decorators that mutmut supports if they are the only one."""

LEFT = ("abstractmethod", "overload", "setter")
"""Decorators that are left as they are: their functions have no body, or the decorator cannot be called afterwards."""

PLUGINS = [
    *("-p", "scripts.mutation.hits", "-p", "pytest_timeout", "-p", "no:cacheprovider", "-p", "no:unraisableexception"),
    *("--assert=plain", "--tb=no"),
]
"""Options of pytest. unraisableexception would collect garbage ten times per run, which takes longer than most tests.

Explanations of failed assertions are not made, because nobody reads them."""

SETTINGS = """
[tool.mutmut]
source_paths = ["flexiclip", "flexiclip_eval"]
only_mutate = {only}
pytest_add_cli_args = {plugins}
pytest_add_cli_args_test_selection = {tests}
also_copy = ["flexiclip_recipes"]
do_not_mutate_patterns = ['raise \\w+\\(']
process_isolation = "forkserver"
track_dependencies = false
use_git_change_detection = false
timeout_multiplier = 4.0
timeout_constant = {slack_s}
"""
"""Settings of mutmut. Error messages are not mutated, because tests look for the part that matters, not for each letter."""


def plain(source: str) -> str:
    """Return a module's source with its decorators as calls, also those of nested functions.

    The last definition is rewritten first, so that the line numbers of the others remain valid.
    """
    lines = source.split("\n")
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef) and _rewritten(node)]
    for node in sorted(functions, key=lambda node: node.end_lineno or 0, reverse=True):
        value = node.name
        for decorator in reversed(node.decorator_list):
            value = f"{ast.unparse(decorator)}({value})"
        lines.insert(node.end_lineno or 0, f"{' ' * node.col_offset}{node.name} = {value}")
        first = node.decorator_list[0].lineno - 1
        lines[first : node.lineno - 1] = [""] * (node.lineno - 1 - first)
    return "\n".join(lines)


def _rewritten(node: ast.FunctionDef) -> bool:
    names = [ast.unparse(decorator).partition("(")[0].rpartition(".")[2] for decorator in node.decorator_list]
    return bool(names) and not (len(names) == 1 and names[0] in KEPT) and not any(name in LEFT for name in names)


def prepare(module: Module, slack_s: float) -> None:
    """Update the copy and configure mutmut for one module. Unchanged files keep their modification time.

    slack_s: a mutant may run for 4 x (the time of its tests + slack_s), in seconds.
    """
    wanted = {Path("pyproject.toml"): _settings(module, slack_s)}
    for folder, name in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                wanted[name / path.relative_to(ROOT / folder)] = path.read_bytes()
    for relative, content in wanted.items():
        _write(TREE / relative, plain(content.decode()).encode() if str(relative) == module.in_tree else content)
    for name in FOLDERS.values():
        for top in (TREE, MUTANTS):
            _drop_others(top, name, wanted)
    for folder in ("tests", "scripts", "docs"):
        shutil.rmtree(MUTANTS / folder, ignore_errors=True)
        shutil.copytree(ROOT / folder, MUTANTS / folder, ignore=shutil.ignore_patterns("__pycache__"))
    # A run of another module leaves an unmutated copy behind, and the times of its own tests.
    (MUTANTS / module.in_tree).unlink(missing_ok=True)
    (MUTANTS / "mutmut-stats.json").unlink(missing_ok=True)
    IMPORTED.unlink(missing_ok=True)


def _settings(module: Module, slack_s: float) -> bytes:
    only, tests = json.dumps([module.in_tree]), json.dumps(list(module.tests))
    settings = SETTINGS.format(only=only, tests=tests, slack_s=slack_s, plugins=json.dumps(PLUGINS))
    return ((ROOT / "pyproject.toml").read_text() + settings).encode()


def _write(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _drop_others(top: Path, folder: str, wanted: dict[Path, bytes]) -> None:
    """Delete sources that the repository no longer has. mutmut's own files next to them are kept."""
    for path in (top / folder).rglob("*.py"):
        if path.relative_to(top) not in wanted:
            path.unlink()
