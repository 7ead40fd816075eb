"""Whether a command line of a page could run: the command's own parser takes it, and files, recipes, suites and keys exist."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
from pathlib import Path

from flexiclip_eval.suites.load import load_suite

from flexiclip import cli
from kit.pages import PLACEHOLDER, ROOT, check_recipe, files_of, schema_keys

NOT_OURS = {"apt", "git", "head", "hf", "ip", "kubectl", "ls", "npm", "sbatch", "source", "tail", "tensorboard"}
"""Programs of others, which are not looked into; `sbatch` and `kubectl` name a file of ours, which is looked for."""


def check(words: list[str], page: Path) -> None:
    """Raise an error for a command line that could not run. A word in capitals is a placeholder and fits everywhere."""
    program, *rest = words
    if program in ("torchrun", "deepspeed"):
        at = max(rest.index(option) for option in ("-m", "--module") if option in rest)
        check(rest[at + 1 :], page)
    elif program == "flexiclip":
        check_flexiclip(rest, page)
    elif program.startswith("scripts/"):
        check_script(ROOT / program, rest, page)
    elif program in ("python", "python3"):
        check_python(rest, page)
    elif program == "pip":
        check_pip(rest)
    elif program in NOT_OURS:
        ours = [word for word in rest if word.startswith("scripts/")]
        for number, word in enumerate(rest):
            if word in ours:
                assert (ROOT / word).is_file(), word
                if word.endswith(".sh"):
                    check_script(ROOT / word, rest[number + 1 :], page)
    else:
        raise AssertionError(f"{program!r} is not a known command; if the block does not hold commands, begin it with ```text")


def check_flexiclip(words: list[str], page: Path) -> None:
    given = cli._parser().parse_args([_number(before, word) for before, word in zip(["", *words], words, strict=False)])
    if getattr(given, "recipe", None):
        check_recipe(given.recipe, getattr(given, "overrides", []), page)
    for suite in getattr(given, "suite", []):
        made = f'Path("{suite}"' in page.read_text(encoding="utf-8")  # by a block of Python on the page
        if not PLACEHOLDER.fullmatch(suite) and suite not in files_of(page) and not made:
            load_suite(suite)


def _number(before: str, word: str) -> str:
    """A placeholder of an option that wants a number becomes one."""
    return "8" if before.startswith("--") and before != "--suite" and re.fullmatch("[NMS]", word) else word


def check_script(path: Path, words: list[str], page: Path) -> None:
    """A script of ours: it is there, and takes these arguments."""
    assert path.is_file(), f"{path} does not exist"
    assert os.access(path, os.X_OK) or path.suffix == ".py", f"{path} is not executable"
    if path.suffix == ".py":
        return check_python([str(path), *words], page)
    if path.name == "quickstart.sh":
        return check_recipe("openmoji_flexilit", words, page)
    if path.parent.name == "launch":
        return check_recipe(words[0], words[1:], page)
    if path.name == "test.sh":  # its arguments are pytest's
        paths = [word for word in words if word.startswith("tests/")]
        assert all((ROOT / each).exists() for each in paths), paths
        return None
    text = path.read_text(encoding="utf-8")
    wrapped = re.search(r"python -m (\S+) \"\$@\"", text)
    accepted = text + (source_of(wrapped[1]) if wrapped else "")
    for word in words:
        name = word.removesuffix("...")
        if word.startswith("--"):
            assert word in accepted, f"{path.name} does not know {word}"
        elif path.name == "bench.sh" and not PLACEHOLDER.fullmatch(word):
            assert (ROOT / "scripts" / "bench" / "subjects" / f"{name}.py").is_file(), word
        elif path.name == "paper.sh" and word.isidentifier() and not PLACEHOLDER.fullmatch(word):
            assert (ROOT / "scripts" / "paper" / "studies" / f"{name}.py").is_file(), word
    return None


def check_python(words: list[str], page: Path) -> None:
    if words[0] == "-m":
        if words[1] in ("venv", "build"):
            return None
        if words[1] == "flexiclip":
            return check_flexiclip(words[2:], page)
        if PLACEHOLDER.search(words[1]):
            return None
        source, rest = source_of(words[1]), words[2:]
    elif f"# {words[0]}\n" in page.read_text(encoding="utf-8"):
        return None  # a file that the page shows
    elif PLACEHOLDER.search(words[0]):
        return None
    else:
        source, rest = (ROOT / words[0]).read_text(encoding="utf-8"), words[1:]
    for word in rest:
        if word.startswith("--"):
            assert f'"{word.partition("=")[0]}"' in source, f"{words} has an option that is not there"
    return None


def source_of(module: str) -> str:
    """The source of what `python -m MODULE` runs. The subjects of the benchmarks share the options that record.py has."""
    found = importlib.util.find_spec(module)
    assert found is not None, module
    if found.submodule_search_locations is not None:
        return source_of(f"{module}.__main__")
    assert found.origin is not None
    shared = ROOT / "scripts" / "bench" / "record.py" if module.startswith("scripts.bench.subjects.") else None
    return Path(found.origin).read_text(encoding="utf-8") + (shared.read_text(encoding="utf-8") if shared else "")


def check_pip(words: list[str]) -> None:
    """The extras exist. (Other packages are those of pip's index.)"""
    extras = re.search(r"\[project\.optional-dependencies\]\n(.*?)\n\[", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    assert extras is not None
    for word in words:
        found = re.fullmatch(r"(?:\.|flexiclip)\[([\w,]+)\]", word)
        for extra in found[1].split(",") if found else ():
            assert re.search(rf"^{extra} = \[", extras[1], re.MULTILINE), f"there is no extra {extra}"


def check_mention(text: str) -> None:
    """A command in the middle of a sentence: what it names exists, but arguments may be missing."""
    words = shlex.split(text.replace("|", " | "))
    parser: argparse.ArgumentParser = cli._parser()
    for word in words[1:]:
        groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if word.startswith("--"):
            assert word.partition("=")[0] in parser._option_string_actions, f"{text}: no option {word}"
        elif groups and not PLACEHOLDER.fullmatch(word):
            assert word in groups[0].choices, f"{text}: no command {word}"
            parser = groups[0].choices[word]
        elif re.match(r"[a-z_]+(\.[a-z_]+)*=", word):
            assert word.partition("=")[0] in schema_keys(), f"{text}: no key {word}"
