"""How the scripts install torch: without CUDA where there is no GPU and an index offers it, and else with everything else."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BEFORE_SETTING_UP = """
source <(sed '/^set_up /,$d' scripts/_env.sh | sed "s|^ROOT=.*|ROOT=$PWD|")
needs_cuda() { [ "$GPU" = yes ]; }
install_torch
"""
"""The functions of scripts/_env.sh, without its last lines, which install everything. Whether there is a GPU is the test's."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real virtual environment with pip."""
    folder = tmp_path_factory.mktemp("venv") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder


@pytest.fixture
def index(tmp_path: Path) -> str:
    """An index as pytorch.org has it, with one small wheel that bears torch's name."""
    name, folder = "torch-99.0+cpu-py3-none-any.whl", tmp_path / "index" / "torch"
    folder.mkdir(parents=True)
    facts = "torch-99.0+cpu.dist-info"
    with zipfile.ZipFile(folder / name, "w") as wheel:
        wheel.writestr("torch/__init__.py", "")
        wheel.writestr(f"{facts}/METADATA", "Metadata-Version: 2.1\nName: torch\nVersion: 99.0+cpu\n")
        wheel.writestr(f"{facts}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{facts}/RECORD", f"torch/__init__.py,,\n{facts}/METADATA,,\n{facts}/WHEEL,,\n{facts}/RECORD,,\n")
    (folder / "index.html").write_text(f'<a href="{name.replace("+", "%2B")}">{name}</a>')
    return folder.parent.as_uri()


def install(environment: Path, index: str, gpu: str = "no") -> str:
    """Run the step with that index; returns what it says, without the time."""
    variables = {"FLEXICLIP_VENV": str(environment), "PYTORCH_INDEX": index, "GPU": gpu}
    variables |= {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    command = ["bash", "-c", BEFORE_SETTING_UP]
    ran = subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, check=True)
    return "\n".join(line.partition("] ")[2] for line in ran.stdout.splitlines())


def version(environment: Path) -> str:
    """The version of torch in the environment, or an empty text."""
    code = "import importlib.metadata as m; print(next((d.version for d in m.distributions() if d.name == 'torch'), ''))"
    return subprocess.run(
        [str(environment / "bin" / "python"), "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.slow
def test_torch_without_cuda_where_an_index_offers_it(environment: Path, index: str, tmp_path: Path) -> None:
    assert install(environment, index, gpu="yes") == "torch comes with the other packages: some 3 GB to fetch, 7 GB on the disk"
    assert install(environment, "none") == install(environment, index, gpu="yes")
    empty = tmp_path / "empty"
    empty.mkdir()
    first, second = install(environment, empty.as_uri()).splitlines()
    assert first.startswith(f"no GPU here: torch without CUDA from {empty.as_uri()}: some 0.6 GB to fetch")
    assert second.startswith(f"{empty.as_uri()} has no torch for this machine, or cannot be reached: pip's own index")
    assert version(environment) == ""
    assert install(environment, index).splitlines() == [first.replace(empty.as_uri(), index)]
    assert version(environment) == "99.0+cpu"
    assert install(environment, index) == "torch is there; the other packages: some 0.4 GB to fetch"
