"""A disk that fills up: a small file system in memory, mounted for the test."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kit.launch import Trained, flexiclip_main, run_ranks

from flexiclip.train.checkpoint import open_checkpoint

Fit = Callable[..., Trained]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a disk of 4 MB cannot be mounted here, which takes root: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path, leave: int = 0) -> Path:
    """Write until the disk is full but for `leave` bytes."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
        file.truncate(max(0, file.tell() - leave))
    return ballast


def test_the_checkpoint_before_stays_the_latest(
    fit: Fit, recipe: list[str], reference: Trained, disk: Path, tmp_path: Path
) -> None:
    """Room for one and a half: step 5 is written, 10 and 15 are not and the run goes on, 20 is the last and the run fails."""
    size = sum(path.stat().st_size for path in reference.checkpoint(20).rglob("*") if path.is_file())
    ballast = fill(disk, leave=size * 3 // 2)
    folder = tmp_path / "run"
    argv = (f"run_dir={folder}", f"train.checkpoint_dir={disk}", "train.save_every=5", "train.keep_last=1")
    assert run_ranks(1, tmp_path / "log", flexiclip_main, "train", *recipe, *argv) == [1]
    said = (tmp_path / "log.0").read_text()
    for step in (10, 15, 20):
        assert f"checkpoint step-{step} could not be written: No space left on device: step-5 stays the newest\n" in said
    assert said.splitlines()[-1].startswith("flexiclip: checkpoint step-20 could not be written")
    assert "Traceback" not in said
    assert {path.name for path in disk.iterdir()} == {"ballast", "latest", "step-5"}, "half-written ones take up room"
    assert open_checkpoint(disk / "step-5").step == 5
    assert shutil.disk_usage(disk).free >= size * 2 // 5

    ballast.unlink()
    assert run_ranks(1, tmp_path / "log", flexiclip_main, "train", *recipe, *argv) == [0]
    assert f"going on from {disk}/step-5\n" in (tmp_path / "log.0").read_text()
    assert Trained(folder).samples == reference.samples
    assert abs(Trained(folder).column("loss") - reference.column("loss")).max() < 1e-5
    assert {path.name for path in disk.iterdir()} == {"latest", "step-20"}


@pytest.mark.parametrize("world", [1, 2])
def test_logs_on_a_full_disk_end_the_run_in_one_line(recipe: list[str], disk: Path, tmp_path: Path, world: int) -> None:
    """Room for the start and for some rows."""
    fill(disk, leave=64 << 10)
    folder = disk / "run"
    argv = (*recipe, f"run_dir={folder}", "train.steps=5000", "train.save_every=0")
    codes = run_ranks(world, tmp_path / "log", flexiclip_main, "train", *argv)
    said = "".join(Path(f"{tmp_path / 'log'}.{rank}").read_text() for rank in range(world))
    assert codes == [1] * world, said
    assert " cannot be written: No space left on device: the same command goes on from the newest checkpoint" in said
    assert "Traceback" not in said
    assert len(Trained(folder).rows) > 3


def test_a_start_on_a_full_disk_is_one_line(recipe: list[str], disk: Path, tmp_path: Path) -> None:
    fill(disk)
    assert run_ranks(1, tmp_path / "log", flexiclip_main, "train", *recipe, f"run_dir={disk / 'run'}") == [2]
    said = (tmp_path / "log.0").read_text()
    assert f"run_dir={disk / 'run'}: cannot write there: {os.strerror(28)}" in said
    assert "Traceback" not in said
