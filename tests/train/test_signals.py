"""A signal is heard at once, also while the main thread waits inside of torch for ranks that do not come."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch.distributed as dist
from kit.launch import flexiclip_main, free_port, leave_in_time, rank_environment, run_ranks, started_ranks

from flexiclip.train.ranks import joined_ranks
from flexiclip.train.signals import HANDLED_WITHIN_S, Stopped, StopSignal

SOON_S = 4.0
"""A second, on a machine that does other things as well."""


def until(condition: Callable[[], bool], process: BaseProcess) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it does not get there"
        assert process.exitcode is None, "it ended before"
        time.sleep(0.02)


def one_of_two(rank: int, port: int, target: Callable[..., int | None], *arguments: object) -> int | None:
    """One rank of two; the other one never comes."""
    os.environ.update(rank_environment(rank, 2, port))
    return target(*arguments)


def interrupted_by_default(said: str) -> int:
    """As `flexiclip eval` joins the ranks: nothing to save."""
    with joined_ranks(process_group=False, threads=1):
        raise AssertionError(said)


@pytest.mark.parametrize(
    ("rank", "number", "command"),
    [(0, signal.SIGINT, "train"), (1, signal.SIGINT, "train"), (1, signal.SIGTERM, "train"), (0, signal.SIGINT, "eval")],
)
def test_a_signal_ends_a_start_that_waits_for_the_other_ranks(
    recipe: list[str], tmp_path: Path, rank: int, number: signal.Signals, command: str
) -> None:
    with contextlib.ExitStack() as stack:
        port = free_port()
        if rank == 1:  # rank 0 answers, and says nothing
            listener = stack.enter_context(socket.create_server(("127.0.0.1", port)))
        train = (flexiclip_main, "train", *recipe, f"run_dir={tmp_path / 'run'}")
        arguments = train if command == "train" else (interrupted_by_default, "the other rank is there")
        (process,) = stack.enter_context(started_ranks(1, tmp_path / "log", one_of_two, rank, port, *arguments))
        if rank == 1:
            listener.settimeout(60)
            stack.enter_context(listener.accept()[0])
        else:
            until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, process)
        time.sleep(0.2)
        os.kill(process.pid or 0, number)
        took = leave_in_time([process])
    said = (tmp_path / "log.0").read_text()
    assert took < SOON_S
    assert process.exitcode == (0 if command == "train" else 130), said
    line = "stopped by a signal before the first step" if command == "train" else "flexiclip: interrupted"
    assert said.splitlines().count(line) == 1, said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def wait_inside_of_torch(port: int, deferred: bool) -> None:
    """The main thread asks a store for what nobody puts there."""
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    with StopSignal() as stop:
        if deferred:
            stop.defer()
        print("waits", flush=True)
        store.wait(["never"], timedelta(seconds=60))


@pytest.mark.parametrize("deferred", [True, False])
def test_a_second_interrupt_ends_a_run_whose_main_thread_is_stuck(tmp_path: Path, deferred: bool) -> None:
    """Where there is something to save, the first one is only said; data workers and their like do not outlive the second."""
    log = tmp_path / "log.0"
    with started_ranks(1, tmp_path / "log", wait_inside_of_torch, free_port(), deferred) as (process,):
        until(lambda: log.is_file() and "waits" in log.read_text(), process)
        os.kill(process.pid or 0, signal.SIGINT)
        if deferred:
            until(lambda: "the run stops and saves after this step; Ctrl-C once more leaves at once" in log.read_text(), process)
            os.kill(process.pid or 0, signal.SIGTERM)  # of a launcher, which passes on what it has got
            time.sleep(1.0)
            assert process.exitcode is None
            os.kill(process.pid or 0, signal.SIGINT)
        assert leave_in_time([process]) < SOON_S
    assert process.exitcode == (130 if deferred else 0)


def hear_late(port: int) -> None:
    """The main thread comes back from torch a little after the signal."""
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    with StopSignal() as stop:
        stop.defer()
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(dist.DistStoreError):
            store.wait(["never"], timedelta(seconds=0.3))
        assert stop.asked
        time.sleep(HANDLED_WITHIN_S + 0.2)


def test_a_main_thread_that_comes_back_in_time_decides_by_itself(tmp_path: Path) -> None:
    assert run_ranks(1, tmp_path / "log", hear_late, free_port()) == [0]
    assert "Ctrl-C once more" not in (tmp_path / "log.0").read_text()


def test_a_signal_that_the_main_thread_hears_ends_nothing_by_force() -> None:
    """Its handler alone decides: here it is asked to stop, and a second SIGTERM changes nothing."""
    with StopSignal() as stop:
        stop.defer()
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.7)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_signal_leaves_at_once_before_the_first_step_and_is_noted_after_it(number: signal.Signals) -> None:
    with pytest.raises(Stopped), StopSignal():
        signal.raise_signal(number)
    with StopSignal() as stop:
        stop.defer()
        signal.raise_signal(number)
        assert stop.asked


def test_stop_signal_gives_the_old_handlers_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopSignal():
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] != before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_stopped_is_no_error_that_a_library_could_swallow() -> None:
    assert issubclass(Stopped, BaseException)
    assert not issubclass(Stopped, Exception)
