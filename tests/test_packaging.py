"""What pip installs: the two mapped folders, their YAML, and the entry point, from a wheel as from an editable install."""

from __future__ import annotations

import ast
import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ["flexiclip", "eval", "recipes", "pyproject.toml", "setup.py", "README.md", "LICENSE"]
NEW = {"flexiclip/losses/new": "flexiclip/losses/new", "eval/new/folder": "flexiclip_eval/new/folder"}
"""Folders that the copy has and the repository does not, and where the wheel should have them."""

PROBE = """
import flexiclip, flexiclip_eval, flexiclip_recipes, importlib.resources as r
from flexiclip.config import load
print([load("debug", ["seed=5"]).seed, flexiclip.__file__, flexiclip_eval.__file__, flexiclip_recipes.__file__,
       sorted(p.name for p in r.files("flexiclip_eval").joinpath("suites").iterdir() if p.name.endswith(".yaml"))])
"""


def run(*command: str, cwd: Path, **environment: str) -> str:
    """Standard output of a command; a failure shows its standard error."""
    ran = subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built by way of the source distribution, as it would be published, from a copy so that nothing is left in the checkout."""
    copy = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    for folder in (Path(name) for name in NEW):
        for package in (folder, folder.parent):
            (copy / package).mkdir(parents=True, exist_ok=True)
            (copy / package / "__init__.py").touch()
    run(sys.executable, "-m", "build", "--no-isolation", cwd=copy)
    (built,) = (copy / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with nothing but the wheel in it."""
    target = tmp_path_factory.mktemp("site")
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "--quiet",
        "--target",
        str(target),
        str(wheel),
        cwd=target,
    )
    return target


def test_wheel_holds_every_file_of_the_packages(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    packages = {"flexiclip": "flexiclip", "eval": "flexiclip_eval", "recipes": "flexiclip_recipes"}
    wanted = {
        f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, package in packages.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted - names == set()
    assert "flexiclip_recipes/debug.yaml" in wanted
    assert "flexiclip/py.typed" in wanted
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == set(packages.values())


def test_a_new_folder_is_packed_without_being_listed(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"{folder}/__init__.py" for folder in NEW.values()} <= names


def test_wheel_has_the_entry_point_and_the_licence(wheel):
    archive = zipfile.ZipFile(wheel)
    (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    parser = configparser.ConfigParser()
    parser.read_string(archive.read(entry_points).decode())
    assert parser["console_scripts"]["flexiclip"] == "flexiclip.__main__:main"
    (licence,) = (name for name in archive.namelist() if name.endswith("LICENSE"))
    assert "Apache License" in archive.read(licence).decode()


def test_installed_wheel_finds_recipes_and_suites_by_name(installed, tmp_path):
    seed, *files, suites = ast.literal_eval(run(sys.executable, "-c", PROBE, cwd=tmp_path, PYTHONPATH=str(installed)))
    assert seed == 5
    assert all(Path(file).is_relative_to(installed) for file in files)
    assert suites == sorted(path.name for path in (ROOT / "eval" / "suites").glob("*.yaml"))
    assert "openmoji.yaml" in suites


def test_editable_install_finds_recipes_and_suites_by_name(tmp_path):
    seed, *files, suites = ast.literal_eval(run(sys.executable, "-c", PROBE, cwd=tmp_path))
    assert seed == 5
    assert [Path(file).parent.name for file in files] == ["flexiclip", "eval", "recipes"]
    assert "openmoji.yaml" in suites


def test_command_and_module_are_the_same_program(tmp_path):
    command = str(Path(sys.executable).with_name("flexiclip"))
    assert run(command, "show-config", "debug", cwd=tmp_path) == run(
        sys.executable, "-m", "flexiclip", "show-config", "debug", cwd=tmp_path
    )
