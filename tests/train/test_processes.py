"""Training ranks that die, hang, are stopped or differ: the others name them and leave, and the same command goes on."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from kit.alike import ENGINES
from kit.launch import Command, Trained, descendants, flexiclip_main, leave_in_time, run_ranks, said, started_ranks, trained
from kit.overrides import load_last
from kit.train_shards import sample, write_shard

from flexiclip.train.logs import read_lines
from flexiclip.train.signals import Stopped, StopSignal

ENDLESS = ["train.steps=100000", "train.save_every=3", "train.save_in_background=false"]
"""Stopped by what the test does, after a checkpoint."""


def wait_until(condition: Callable[[], bool], ranks: list[BaseProcess]) -> None:
    """Until the condition holds; all ranks must still run by then."""
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline, "the run does not get there"
        assert all(process.exitcode is None for process in ranks), "a rank ended before"
        time.sleep(0.02)


def text(log: Path, rank: int) -> str:
    """What a rank has said so far."""
    path = Path(f"{log}.{rank}")
    return path.read_text() if path.is_file() else ""


def reached(folder: Path) -> int:
    """The step that metrics.jsonl ends with."""
    rows = read_lines(folder / "metrics.jsonl")
    return int(rows[-1]["step"]) if rows else 0


def newest(folder: Path) -> int:
    """The step of the newest complete checkpoint; 0 when there is none."""
    latest = folder / "checkpoints" / "latest"
    return int(latest.read_text().removeprefix("step-")) if latest.is_file() else 0


@pytest.mark.parametrize(
    ("victim", "engine"),
    [(0, "torch"), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((1, "zero2"), (0, "zero3"), (2, "zero1")))],
)
def test_kill_9_of_one_of_three_is_named_by_the_others(recipe: list[str], tmp_path: Path, victim: int, engine: str) -> None:
    """Rank 0 too, which writes the files and hosts what the ranks meet at. (How the run goes on: test_soak.py.)"""
    folder, log = tmp_path / "run", tmp_path / "log"
    argv = ["train", *recipe, f"run_dir={folder}", *ENGINES[engine], "data.workers=1", *ENDLESS]
    with started_ranks(3, log, flexiclip_main, *argv) as ranks:
        wait_until(lambda: newest(folder) > 0, ranks)
        ranks[victim].kill()
        print(f"the others left after {leave_in_time(ranks):.1f} s")
    name = f"rank {victim} ({socket.gethostname()}, pid {ranks[victim].pid})"
    for rank in {0, 1, 2} - {victim}:
        assert ranks[rank].exitcode == 1
        (line,) = said(log, rank)
        assert line == f"flexiclip: {name} is lost: its process ended without a word (killed, or out of memory?)"


def a_rank(command: Command) -> int:
    """A trainer that a launcher has started: the process with the launcher's number of rank 1."""
    for pid in descendants(command.started[0].pid):
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if b"RANK=1" in environment and b"flexiclip" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise AssertionError("there is no rank 1")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_kill_9_under_a_launcher(recipe: list[str], tmp_path: Path, launcher: str) -> None:
    """Launchers send SIGTERM to the ranks that are left. Those do not try to save together with the dead one."""
    folder, log = tmp_path / "run", tmp_path / "log"
    with Command() as command:
        getattr(command, launcher)(2, log, "train", *recipe, f"run_dir={folder}", *ENGINES["zero2"], *ENDLESS)
        command.wait_for(lambda: newest(folder) > 0)
        pid = a_rank(command)
        os.kill(pid, signal.SIGKILL)
        (code,) = command.wait(60)
    assert code not in (0, None)
    assert f"flexiclip: rank 1 ({socket.gethostname()}, pid {pid}) is lost: " in log.read_text()


UNSAVED = ["train.steps=100000", "train.save_every=0"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_sigint_under_a_launcher_saves(recipe: list[str], tmp_path: Path, launcher: str) -> None:
    """What Ctrl-C does to the launcher and to what it has started in its own process group."""
    folder, log = tmp_path / "run", tmp_path / "log"
    with Command() as command:
        getattr(command, launcher)(
            2, log, "train", *recipe, f"run_dir={folder}", *ENGINES["zero2"], "train.steps=100000", "train.save_every=0"
        )
        command.wait_for(lambda: reached(folder) >= 3)
        command.signal_groups(signal.SIGINT)
        command.wait(100)
    assert "stopped by a signal" in log.read_text()
    assert newest(folder) == reached(folder) >= 3


def test_a_signal_before_the_first_step_stops_all_ranks(recipe: list[str], tmp_path: Path) -> None:
    """Sent to one of them while the engine is being made: nothing is to be saved, and nobody waits for its start."""
    folder, log = tmp_path / "run", tmp_path / "log"
    with started_ranks(2, log, flexiclip_main, "train", *recipe, f"run_dir={folder}", *ENGINES["zero1"], *ENDLESS) as ranks:
        wait_until((folder / "config.yaml").is_file, ranks)
        ranks[0].terminate()  # it has written the file, so it listens to signals by then
        leave_in_time(ranks)
    assert [process.exitcode for process in ranks] == [0, 0], text(log, 0) + text(log, 1)
    assert "stopped by a signal" in text(log, 0)
    assert "Traceback" not in text(log, 0) + text(log, 1)


def test_a_signal_that_a_library_turns_into_its_own_error_is_still_a_signal() -> None:
    """A C extension that is being imported raises ImportError in the place of what its signal handler raised."""

    def setting_up(sent: bool, saved: bool) -> None:
        with StopSignal() as stop:
            if saved:
                stop.defer()
            try:
                if sent:
                    signal.raise_signal(signal.SIGTERM)
            finally:
                raise ImportError("initialization failed")

    with pytest.raises(Stopped):
        setting_up(sent=True, saved=False)
    for sent in (False, True):  # nobody asked; or there is something to save, and an error must not pass for a stop
        with pytest.raises(ImportError):
            setting_up(sent, saved=sent)


# --- Data that hangs


HANGS_AT = 2
"""The step after which every shard that is not open yet turns into a FIFO: opening one waits for a writer that never comes."""


def train_until_data_hangs(*argv: str) -> int:
    """The command line's training; the evaluation inside the run takes the shards away."""

    from flexiclip.data.reading import reopen

    config = load_last(argv)
    folder = Path(str(config.data.train)).parent

    def take_away(_: Any) -> dict[str, float]:
        if int(os.environ["RANK"]) < int(os.environ["WORLD_SIZE"]) - 1:
            return {}
        for shard in sorted(folder.glob("*.tar")):
            if not shard.is_fifo():
                os.mkfifo(f"{shard}.fifo")
                os.replace(f"{shard}.fifo", shard)
        if os.environ["RANK"] == "1":  # as if only this rank had lost its disk: the others hold theirs open
            reopen()
        return {}

    return trained(config, take_away)


@pytest.fixture
def small_shards(tmp_path: Path) -> str:
    """Sixteen shards of a batch each, so that most of them are opened late."""
    for shard in range(16):
        write_shard(tmp_path / f"part-{shard:02}.tar", [sample(12 * shard + n) for n in range(12)])
    return str(tmp_path / "part-*.tar")


@pytest.fixture
def hanging(recipe: list[str], small_shards: str, tmp_path: Path) -> list[str]:
    """The arguments of a run whose data hangs soon."""
    slow = ["data.window_shards=1", "data.prefetch=1", f"eval.every={HANGS_AT}", "train.steps=100000", "train.save_every=0"]
    return [*recipe, f"data.train={small_shards}", f"run_dir={tmp_path / 'run'}", *slow]


def test_data_that_hangs_is_reported_by_stage_and_a_signal_still_saves(hanging: list[str], tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    with started_ranks(1, log, train_until_data_hangs, *hanging, "data.workers=2", "data.stall_s=2") as ranks:
        wait_until(lambda: "has no batch" in text(log, 0), ranks)
        os.kill(ranks[0].pid or 0, signal.SIGTERM)
        leave_in_time(ranks)
    assert ranks[0].exitcode == 0, text(log, 0)
    (report,) = re.findall(r"rank 0 has no batch for step (\d+) after 2 s \(data.stall_s=2\): (.*)", text(log, 0))
    assert int(report[0]) == reached(folder) + 1 > HANGS_AT
    at = re.findall(r"worker (\d) \(pid \d+\): (\w+) (\S*part-\d\d.tar)? ?(s\d{4})? ?for \d+ s", report[1])
    assert [each[0] for each in at] == ["0", "1"]
    assert "reading" in {each[1] for each in at if each[2] and each[3]}, report
    assert newest(folder) == reached(folder)


@pytest.mark.slow
def test_data_that_hangs_ends_the_run_after_a_while(hanging: list[str], tmp_path: Path) -> None:
    """In the trainer's own process nothing can interrupt the read either."""
    with started_ranks(1, tmp_path / "log", train_until_data_hangs, *hanging, "data.stall_s=0.8") as ranks:
        leave_in_time(ranks, 240)
    assert ranks[0].exitcode == 1
    said_in_all = text(tmp_path / "log", 0)
    assert said_in_all.count("has no batch for step") == 10
    line = said_in_all.splitlines()[-1]
    assert re.search(r"flexiclip: rank 0 has no batch .* after 8 s .*worker 0 .*: reading \S+\.tar s\d{4} for", line), line
    assert line.endswith("given up; the last checkpoint is good")


def test_a_rank_whose_data_hangs_stops_and_saves_with_the_others(hanging: list[str], tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    argv = [*hanging, "data.window_shards=16", "data.stall_s=2"]  # open on all ranks from the start
    with started_ranks(2, log, train_until_data_hangs, *argv) as ranks:
        wait_until(lambda: "rank 1 has no batch" in text(log, 1), ranks)
        for process in ranks:
            os.kill(process.pid or 0, signal.SIGTERM)
        leave_in_time(ranks)
    assert [process.exitcode for process in ranks] == [0, 0]
    assert newest(folder) == reached(folder) == HANGS_AT


# --- Ranks that do not mean the same run


def main_with_own_seed(*argv: str) -> int:
    return flexiclip_main(*argv, f"seed={os.environ['RANK']}", f"data.workers={os.environ['RANK']}")


def test_ranks_of_different_recipes_are_refused(recipe: list[str], tmp_path: Path) -> None:
    """A host that was started with another command. How many workers it has is its own affair."""
    folder = tmp_path / "run"
    codes = run_ranks(3, tmp_path / "log", main_with_own_seed, "train", *recipe, f"run_dir={folder}")
    assert codes == [2, 2, 2]
    host = re.escape(socket.gethostname())
    (line,) = said(tmp_path / "log", 0)
    assert re.fullmatch(
        rf"flexiclip: rank 1 \(on {host}\) was started with seed=1, rank 0 \(on {host}\) with 0 and 1 more ranks have "
        r"another recipe: start every rank with the same command",
        line,
    )
    assert said(tmp_path / "log", 1) == said(tmp_path / "log", 2) == [], "rank 0 says what all ranks know"
    assert not folder.exists()


def test_the_folder_of_another_recipe_is_refused_on_every_rank(recipe: list[str], reference: Trained, tmp_path: Path) -> None:
    before = (reference.folder / "config.yaml").read_text()
    codes = run_ranks(2, tmp_path / "log", flexiclip_main, "train", *recipe, f"run_dir={reference.folder}", "seed=9")
    assert codes == [2, 2]
    (line,) = said(tmp_path / "log", 0)
    assert line.startswith(f"flexiclip: {reference.folder} holds a run with seed=0, not 9: give another run_dir")
    assert said(tmp_path / "log", 1) == []
    assert (reference.folder / "config.yaml").read_text() == before
