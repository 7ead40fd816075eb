"""The watch over the ranks, without a training: who is lost is named and nobody waits for it; who is only slow is waited for."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist
from kit.launch import free_port, leave_in_time, said, started_ranks

from flexiclip.errors import RunError, UserError
from flexiclip.train import heartbeat
from flexiclip.train.heartbeat import Heartbeat
from flexiclip.train.ranks import Ranks, joined_ranks


def watched(body: Callable[[Ranks], None], timeout_s: float) -> int:
    """A rank that does `body`, with the exit codes and lines of the command line."""
    heartbeat.GRACE_S, heartbeat.BEAT_S = 1, 0.5
    try:
        with joined_ranks(False, 1, timeout_s) as ranks:
            body(ranks)
    except (UserError, RunError) as error:
        print(f"flexiclip: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


def killed(ranks: Ranks) -> None:
    """No collective ever tells the others."""
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1000)


def test_a_rank_that_hears_of_no_error_is_ended(tmp_path: Path) -> None:
    """In data loading, in a save, in NCCL: nothing there says that a peer is gone."""
    with started_ranks(3, tmp_path / "log", watched, killed, 40.0) as ranks:
        leave_in_time(ranks)
    assert [process.exitcode for process in ranks] == [1, -signal.SIGKILL, 1]
    name = f"rank 1 ({socket.gethostname()}, pid {ranks[1].pid})"
    for rank in (0, 2):
        (line,) = said(tmp_path / "log", rank)
        assert line == f"flexiclip: {name} is lost: its process ended without a word (killed, or out of memory?)"


def frozen(ranks: Ranks) -> None:
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    ranks.barrier()


def test_a_rank_without_a_sign_of_life_is_lost(tmp_path: Path) -> None:
    """SIGSTOP stands for a host that froze and for a cable that was pulled: the connection stays, and nothing comes."""
    with started_ranks(2, tmp_path / "log", watched, frozen, 3.0) as ranks:
        leave_in_time(ranks[:1])
        assert ranks[0].exitcode == 1
    (line,) = said(tmp_path / "log", 0)
    assert line.endswith(f"pid {ranks[1].pid}) is lost: no sign of life for 3 s (train.rank_timeout_s)")


def without_a_turn(ranks: Ranks) -> None:
    """For three beats no other thread of rank 1 gets its turn: a library that holds the interpreter's lock."""
    if ranks.rank == 1:
        ctypes.PyDLL(None).usleep(int(3 * heartbeat.BEAT_S * 1e6))
    ranks.barrier()


def stopped_for_a_while(ranks: Ranks) -> None:
    """Rank 0, which all others listen to, sleeps for three beats by SIGSTOP."""
    if ranks.rank == 0 and not os.fork():
        time.sleep(3 * heartbeat.BEAT_S)
        os.kill(os.getppid(), signal.SIGCONT)
        os._exit(0)
    if ranks.rank == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    ranks.barrier()


@pytest.mark.parametrize("body", [without_a_turn, stopped_for_a_while])
def test_a_slow_rank_is_waited_for(tmp_path: Path, body: Callable[[Ranks], None]) -> None:
    with started_ranks(2, tmp_path / "log", watched, body, 40.0) as ranks:
        leave_in_time(ranks)
    assert [process.exitcode for process in ranks] == [0, 0]
    assert said(tmp_path / "log", 0) == said(tmp_path / "log", 1) == []


def of_its_own(ranks: Ranks) -> None:
    if ranks.rank == 1:
        raise UserError("no room: make some")
    ranks.barrier()


def test_a_rank_that_leaves_says_why_and_the_others_say_it_too(tmp_path: Path) -> None:
    with started_ranks(3, tmp_path / "log", watched, of_its_own, 40.0) as ranks:
        leave_in_time(ranks)
    assert [process.exitcode for process in ranks] == [1, 2, 1]
    assert said(tmp_path / "log", 1) == ["flexiclip: no room: make some"]
    for rank in (0, 2):
        (line,) = said(tmp_path / "log", rank)
        assert re.fullmatch(rf"flexiclip: rank 1 \(.*, pid {ranks[1].pid}\) left: no room: make some", line)


def done_early(ranks: Ranks) -> None:
    """Rank 2 has nothing left to do long before the others; then rank 0 before rank 1."""
    if ranks.rank < 2:
        time.sleep(2 - ranks.rank)


def test_a_rank_that_is_done_is_not_missed(tmp_path: Path) -> None:
    with started_ranks(3, tmp_path / "log", watched, done_early, 40.0) as ranks:
        leave_in_time(ranks)
    assert [process.exitcode for process in ranks] == [0, 0, 0]


def until_closed(connection: socket.socket) -> bytes:
    """What the other side sent until it hung up."""
    heard, deadline = b"", time.monotonic() + 10
    connection.settimeout(10)
    try:
        while data := connection.recv(1 << 16):
            heard += data
            assert time.monotonic() < deadline, "it does not hang up"
    except ConnectionResetError:  # it hung up before it had read everything
        pass
    return heard


ENDLESS = b"x" * (heartbeat._MAX_LINE + 1)
SPEECHES = [b"GET / HTTP/1.1\r\n\r\n", b'{"token": "guessed", "rank": 1, "name": "x"}\n', b"[]\n", ENDLESS]


@pytest.mark.parametrize("speech", [*SPEECHES, b""])
def test_a_stranger_at_the_port_is_no_rank(monkeypatch: pytest.MonkeyPatch, speech: bytes) -> None:
    """One that speaks is hung up on at once, long before its silence would count, and nobody is lost by it."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    store = dist.HashStore()
    with Heartbeat(store, 0, 2, 40.0) as first:
        with socket.create_connection(("127.0.0.1", json.loads(store.get(heartbeat._KEY))["port"])) as stranger:
            stranger.sendall(speech)
            if speech:
                assert until_closed(stranger).strip(b"{}\n") == b"", "more than beats"
        with Heartbeat(store, 1, 2, 40.0) as second:
            assert second.loss is None
        assert first.loss is None


def test_a_stranger_that_stays_silent_is_hung_up_on_and_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    store = dist.HashStore()
    with Heartbeat(store, 0, 2, 0.5) as first:
        with socket.create_connection(("127.0.0.1", json.loads(store.get(heartbeat._KEY))["port"])) as stranger:
            assert until_closed(stranger).count(b"{}\n") >= 3, "beats of a tenth of a second, for half a second"
        assert first.loss is None


def test_a_machine_that_was_suspended_as_a_whole_loses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of both ranks leaps by far more than the time after which a silent rank is lost."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.1)
    clock, asleep = time.monotonic, 0.0
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: clock() + asleep)
    store = dist.HashStore()
    with Heartbeat(store, 0, 2, 40.0) as first, Heartbeat(store, 1, 2, 40.0) as second:
        time.sleep(0.3)
        asleep = 1000.0
        time.sleep(0.5)
        assert first.loss is second.loss is None


def test_ranks_that_do_not_join_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 2 of four is there; it is told as well."""
    assert heartbeat.JOIN_S == 600, "the ten minutes of docs/guides/multinode.md"
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.1)
    monkeypatch.setattr(heartbeat, "JOIN_S", 0.5)
    store = dist.HashStore()
    with Heartbeat(store, 0, 4, 40.0) as first, Heartbeat(store, 2, 4, 40.0) as third:
        assert first._known.wait(30)
        assert third._known.wait(30)
    assert first.loss == third.loss == "2 ranks have not joined within 0.5 s, among them rank 1"


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_never_meet_leave_in_one_line(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """The one that hosts the meeting and one that looks for it, both alone."""
    port = free_port()
    given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**given, "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("flexiclip.train.ranks.JOIN_S", 0.3)
    with pytest.raises(RunError) as caught, joined_ranks(False, 1):
        pass
    assert str(caught.value).startswith(
        f"rank {rank} does not meet the other ranks at 127.0.0.1:{port} (MASTER_ADDR, MASTER_PORT): "
    )
    assert "\n" not in str(caught.value)
