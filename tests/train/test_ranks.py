"""What the ranks tell one another, where they meet, and what a run on several hosts is refused at its start."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from kit.launch import ENVIRONMENT, run_ranks
from kit.train_shards import sample, write_shard

from flexiclip.config import Config, DataConfig, SourceConfig
from flexiclip.data.dataset import open_sources
from flexiclip.errors import UserError
from flexiclip.train import ranks as ranks_module
from flexiclip.train.ranks import (
    TIMEOUT,
    Ranks,
    check_address,
    check_shared_folder,
    data_order,
    joined_ranks,
    share_file,
)


def tell(ranks: Ranks) -> None:
    """What each of three ranks must hear."""
    assert ranks.world == 3
    assert ranks.main is (ranks.rank == 0)
    assert ranks.agree(ranks.rank == 2, False, True) == [True, False, True]
    assert ranks.agree(False) == [False]
    assert ranks.collect([(ranks.rank, n) for n in range(ranks.rank)]) == [(1, 0), (2, 0), (2, 1)]
    ranks.say(f"said by {ranks.rank}")

    began = time.monotonic()
    if ranks.rank == 1:
        time.sleep(0.3)
    ranks.barrier()
    assert time.monotonic() - began >= 0.29, "nobody passes a barrier before the last one"

    assert ranks.first_result(ranks.rank > 0, lambda: f"of rank {ranks.rank}") == "of rank 1", (
        "the first that works, on every rank"
    )

    def fail() -> str:
        raise UserError(f"no room on rank {ranks.rank}")

    with pytest.raises(UserError, match=r"^no room on rank 2$"):
        ranks.first_result(ranks.rank == 2, fail)


def three() -> int:
    with joined_ranks(False, 1) as ranks:
        tell(ranks)
    return 0


def test_ranks_agree_collect_share_and_wait(tmp_path: Path) -> None:
    codes = run_ranks(3, tmp_path / "log", three)
    said = [Path(f"{tmp_path / 'log'}.{rank}").read_text() for rank in range(3)]
    assert codes == [0, 0, 0], said
    assert said == ["said by 0\n", "", ""]


def test_a_single_process_agrees_with_itself(capsys: pytest.CaptureFixture[str]) -> None:
    alone = Ranks(rank=0, world=1, local_rank=0, device=torch.device("cpu"))
    assert alone.agree(True, False) == [True, False]
    assert alone.collect([3, 1]) == [3, 1]
    assert alone.first_result(True, lambda: "done") == "done"
    with pytest.raises(UserError, match="no room"):
        alone.first_result(True, lambda: (_ for _ in ()).throw(UserError("no room")))
    alone.say("a line")
    assert capsys.readouterr().err == "a line\n"


def test_threads_are_the_cores_over_the_local_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not over those of other hosts; and a number that the recipe gives is taken."""
    before = torch.get_num_threads()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    try:
        for name, local, threads, expected in (
            ("LOCAL_WORLD_SIZE", "2", None, 3),
            ("LOCAL_SIZE", "3", None, 2),  # as DeepSpeed says it
            ("LOCAL_WORLD_SIZE", "16", None, 1),
            ("LOCAL_WORLD_SIZE", "2", 2, 2),
        ):
            monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
            monkeypatch.setenv(name, local)
            assert ranks_module._device(0, 32, threads) == torch.device("cpu")
            assert torch.get_num_threads() == expected, (name, local, threads)
    finally:
        torch.set_num_threads(before)


def test_how_long_ranks_wait_is_what_the_page_says() -> None:
    """docs/guides/multinode.md."""
    assert timedelta(minutes=30) == TIMEOUT
    assert Config().train.rank_timeout_s == 40


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A host of that name; addresses resolve to themselves, and localhost to loopback, on every machine."""
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(socket, "gethostname", lambda: request.param)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("localhost", "this host's name localhost resolves to 127.0.0.1"),
        ("127.0.1.1", "this host's name 127.0.1.1 resolves to 127.0.1.1"),
        ("::1", "this host's name ::1 resolves to ::1"),
        ("no such host", "this host's name no such host does not resolve"),
    ],
    indirect=["named"],
)
def test_check_address_refuses_a_name_that_leads_to_itself(named: None, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError) as caught:
        check_address()
    assert str(caught.value).startswith(said)
    assert "set GLOO_SOCKET_IFNAME" in str(caught.value)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    check_address()


@pytest.mark.parametrize("named", ["10.1.2.3", "fd00::1"], indirect=True)
def test_check_address_lets_a_name_pass_that_others_can_reach(named: None) -> None:
    check_address()


AS_LOCALHOST = 'echo localhost > /proc/sys/kernel/hostname && exec "$@"'
"""A shell command, for a process with a host name of its own, that gives it the name that always resolves to loopback."""


def in_own_folder(base: Path) -> int:
    """Each rank looks into a folder of its own, as with a relative run_dir on the disks of several hosts."""
    with joined_ranks(process_group=False) as ranks:
        try:
            check_shared_folder(base / str(ranks.rank), ranks, within_s=0.2)
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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a.tar with six samples, b.tar and c.tar with four each."""
    place = tmp_path / "data"
    place.mkdir()
    for name, count in (("a", 6), ("b", 4), ("c", 4)):
        write_shard(place / f"{name}.tar", [sample(n) for n in range(count)])
    return place


def order(folder: Path, *sources: tuple[str, float], seed: int = 0) -> str:
    """Of sources that are (brace spec, weight)."""
    given = tuple(SourceConfig(str(folder / spec), weight) for spec, weight in sources)
    found = data_order(open_sources(DataConfig(train=given), seed))
    assert found is not None
    return found


def test_data_order_depends_on_names_counts_and_weights_and_not_on_the_folder(folder: Path, tmp_path: Path) -> None:
    mixed = ("{a,b}.tar", 2.0), ("c.tar", 1.0)
    before = order(folder, *mixed)
    assert order(folder, *mixed, seed=7) == before, "the seed is compared with the recipe"
    shutil.copytree(folder, tmp_path / "moved")
    assert order(tmp_path / "moved", *mixed) == before
    others = {
        "weights": order(folder, ("{a,b}.tar", 3.0), ("c.tar", 1.0)),
        "names": order(folder, ("{a,c}.tar", 2.0), ("b.tar", 1.0)),
        "sources": order(folder, ("{a,b,c}.tar", 1.0)),
    }
    write_shard(folder / "b.tar", [sample(n) for n in range(5)])
    others["counts"] = order(folder, *mixed)
    assert len({before, *others.values()}) == 5, others


def test_data_order_is_not_known_of_a_sequential_source() -> None:
    assert data_order(None) is None
