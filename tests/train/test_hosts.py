"""What a run on several hosts is refused at its start: an address that nobody reaches, a run folder that others do not see."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kit.launch import ENVIRONMENT, run_ranks

from flexiclip.errors import UserError
from flexiclip.train.ranks import check_shared_folder, joined_ranks, share_file

AS_LOCALHOST = 'echo localhost > /proc/sys/kernel/hostname && exec "$@"'
"""A shell command, for a process with a host name of its own, that gives it the name that always resolves to loopback."""


def in_own_folder(base: Path) -> int:
    """Each rank looks into a folder of its own, as with a relative run_dir on the disks of several hosts."""
    with joined_ranks(process_group=False) as ranks:
        try:
            check_shared_folder(base / str(ranks.rank), ranks, patience_s=0.2)
        except UserError as error:
            print(error)
            return 2
    return 0


def share(base: Path) -> int:
    """The main rank's file reaches folders that are not there yet, and replaces what is."""
    with joined_ranks(process_group=False) as ranks:
        share_file(base / str(ranks.rank) / "tokenizer.model", ranks)
    return 0


def test_a_run_folder_that_another_rank_does_not_see(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    assert run_ranks(2, tmp_path / "log", in_own_folder, tmp_path) == [2, 2]
    for rank in (0, 1):
        said = (tmp_path / f"log.{rank}").read_text()
        assert f"run_dir={tmp_path / str(rank)}: rank 1 on host " in said
        assert "does not see the folder that rank 0 made there" in said
    assert list((tmp_path / "0").iterdir()) == []


def test_a_run_folder_that_all_see(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    for rank in (1, 2):
        (tmp_path / str(rank)).symlink_to("0")
    assert run_ranks(3, tmp_path / "log", in_own_folder, tmp_path) == [0, 0, 0]
    assert list((tmp_path / "0").iterdir()) == []


def test_the_main_ranks_file_reaches_every_folder(tmp_path: Path) -> None:
    for rank in (0, 1):
        (tmp_path / str(rank)).mkdir()
        (tmp_path / str(rank) / "tokenizer.model").write_bytes(b"of rank %d" % rank)
    assert run_ranks(3, tmp_path / "log", share, tmp_path) == [0, 0, 0]
    assert [(tmp_path / str(rank) / "tokenizer.model").read_bytes() for rank in range(3)] == [b"of rank 0"] * 3
    assert [path.name for path in (tmp_path / "2").iterdir()] == ["tokenizer.model"]


def test_a_host_whose_name_leads_to_itself(recipe: list[str], tmp_path: Path) -> None:
    """One host of two starts; it must leave before it waits for the other."""
    if subprocess.run(["unshare", "--uts", "sh", "-c", AS_LOCALHOST, "sh", "true"], check=False).returncode:
        pytest.skip("a host name of its own needs a UTS namespace, which this machine refuses: run as root")
    ranks = {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    given = {**os.environ, **ENVIRONMENT, **ranks, "MASTER_ADDR": "10.77.0.1", "MASTER_PORT": "29500", "GLOO_SOCKET_IFNAME": ""}
    train = [sys.executable, "-m", "flexiclip", "train", *recipe, f"run_dir={tmp_path / 'run'}"]
    command = ["unshare", "--uts", "sh", "-c", AS_LOCALHOST, "sh", *train]
    ran = subprocess.run(command, env=given, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 2
    (line,) = ran.stderr.splitlines()
    assert line.startswith("flexiclip: this host's name localhost resolves to 127.0.0.1")
    assert "set GLOO_SOCKET_IFNAME" in line
