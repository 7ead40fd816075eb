"""The board says what each worker is at, from another process, while that worker hangs or is dead."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit.shards import good_sample, write_samples

from flexiclip.data.remote import expand_shards
from flexiclip.data.samples import open_samples
from flexiclip.data.worker_watch import Stage, StageBoard, StageName
from flexiclip.errors import RunError


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it does not get there"
        time.sleep(0.01)


def test_a_board_that_nobody_has_written_to() -> None:
    assert StageBoard(2).read() == [Stage(w, 0, "starting", -1, "", "", 0.0) for w in range(2)]
    assert len(StageBoard(0).read()) == 1


def test_dead_waits_for_a_worker_that_is_about_to_end() -> None:
    """A process that is killed closes its files a moment before it has ended."""
    board = StageBoard(1)
    with subprocess.Popen(["sleep", "60"]) as worker:
        notes = board.notes(0)
        notes._pid = worker.pid
        notes("reading", "a.tar", "one")
        assert board.dead() == []
        threading.Timer(0.3, worker.kill).start()
        (stage,) = board.dead(wait_s=30)
    assert (stage.pid, stage.stage, stage.shard, stage.key) == (worker.pid, "dead", "a.tar", "one")
    began = time.monotonic()
    assert StageBoard(1).dead(wait_s=0.2) == []
    assert time.monotonic() - began >= 0.2


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_connection_that_a_dying_worker_has_closed_is_explained(uneven: str, loader_of: Any, error: Exception) -> None:
    batches = loader_of(uneven, workers=1, prefetch=1, steps=1000)
    iterator = iter(batches)
    next(iterator)
    (stage,) = batches.stages.read()
    threading.Timer(0.3, os.kill, (stage.pid, signal.SIGKILL)).start()
    explained = batches._explained(error)
    assert isinstance(explained, RunError)
    assert f"data worker 0 (pid {stage.pid}) has died at" in str(explained)
    del iterator


def test_of_several_threads_the_one_longest_at_it_counts() -> None:
    board = StageBoard(1)
    notes = board.notes(0)
    notes.step = 7
    ready, leave = threading.Barrier(3), threading.Event()

    def read(key: str) -> None:
        notes("reading", "a.tar", key)
        ready.wait()
        leave.wait()
        notes("idle")

    first, second = (threading.Thread(target=read, args=(key,)) for key in ("one", "two"))
    first.start()
    wait_until(lambda: board.read()[0].key == "one")
    second.start()
    ready.wait()
    notes("idle")
    (stage,) = board.read()
    assert (stage.worker, stage.pid, stage.stage, stage.step) == (0, os.getpid(), "reading", 7)
    assert (stage.shard, stage.key) == ("a.tar", "one")
    assert 0 <= stage.seconds < 60
    leave.set()
    first.join()
    second.join()
    assert board.read()[0].stage == "idle"


def test_long_names_are_cut_and_many_threads_are_harmless() -> None:
    board = StageBoard(2)
    notes = board.notes(0)
    notes("decoding", "s3://" + "x" * 1000 + "/end.tar", "ü" * 1000)
    for _ in range(40):
        thread = threading.Thread(target=notes, args=("idle",))
        thread.start()
        thread.join()
    stage, neighbour = board.read()
    assert stage.shard.endswith("/end.tar")
    assert len(stage.shard) == 256
    assert stage.key == "ü" * 80
    assert neighbour.stage == "starting"
    assert str(stage).startswith(f"worker 0 (pid {os.getpid()}): decoding xxx")
    assert str(stage).endswith(" for 0 s")


def hang(board: StageBoard, worker: int, stage: StageName) -> None:
    board.notes(worker)(stage, "a.tar", "k")
    signal.pause()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_it_is_read_from_another_process(method: str) -> None:
    context = multiprocessing.get_context(method)
    board = StageBoard(2)
    process = context.Process(target=hang, args=(board, 1, "reading"))  # type: ignore[attr-defined]
    process.start()
    try:
        wait_until(lambda: board.read()[1].stage == "reading")
        stage = board.read()[1]
        assert (stage.worker, stage.pid, stage.shard, stage.key) == (1, process.pid, "a.tar", "k")
        process.kill()
        wait_until(lambda: board.read()[1].stage == "dead")  # nobody has waited for it yet
        assert board.read()[1].key == "k"
    finally:
        process.kill()
        process.join()
    assert board.read()[1].stage == "dead"
    assert board.read()[0].stage == "starting"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("sequential", [False, True])
def test_a_loader_notes_what_its_workers_do(uneven: str, loader_of: Any, workers: int, sequential: bool) -> None:
    batches = loader_of(uneven, workers=workers, sequential=sequential)
    assert {stage.stage for stage in batches.stages.read()} == {"starting"}
    for batch in batches:
        stages = batches.stages.read()
        gone = {"dead"} if sequential else set()  # such a worker leaves when its share of the steps is done
        assert {stage.stage for stage in stages} <= {"idle", "reading", "decoding", "augmenting", "tokenising", "starting"} | gone
        if workers == 0:
            assert (stages[0].stage, stages[0].step, stages[0].pid) == ("idle", batch.step, os.getpid())
    pids = {stage.pid for stage in batches.stages.read()}
    assert len(pids) == max(1, workers)
    assert (os.getpid() in pids) == (workers == 0)


def test_a_read_that_hangs_is_seen(tmp_path: Path, uneven: str, loader_of: Any) -> None:
    """A FIFO takes a shard's place after it was indexed: opening it waits for a writer that never comes."""
    batches = loader_of(uneven, workers=1)
    for path in map(Path, expand_shards(uneven)):
        open_samples([str(path)], (), ())  # the index stays in its cache
        path.unlink()
        os.mkfifo(path)
    ended: list[BaseException] = []

    def pull() -> None:
        try:
            next(iter(batches))
        except RunError as error:
            ended.append(error)

    puller = threading.Thread(target=pull, daemon=True)
    puller.start()
    try:
        wait_until(lambda: batches.stages.read()[0].stage == "reading")
        (stage,) = batches.stages.read()
        assert Path(stage.shard).name.startswith("train-000")
        assert stage.key.startswith("s00")
        assert stage.step == 0
    finally:
        os.kill(batches.stages.read()[0].pid, signal.SIGKILL)
    puller.join(60)
    assert not puller.is_alive()
    assert f"data worker 0 (pid {stage.pid}) has died at {stage.shard} {stage.key}" in str(ended[0])


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_pass(uneven: str, loader_of: Any) -> None:
    """Noticed where a batch is asked for, not in the middle of whatever the trainer is doing."""
    batches = loader_of(uneven, workers=2, prefetch=1, steps=1000)
    iterator = iter(batches)
    next(iterator)
    victim = batches.stages.read()[1]
    os.kill(victim.pid, signal.SIGKILL)
    wait_until(lambda: batches.stages.read()[1].stage == "dead")
    with pytest.raises(RunError, match=rf"data worker 1 \(pid {victim.pid}\) has died at .*for want of memory"):
        list(itertools.islice(iterator, 20))
    wait_until(lambda: all(stage.stage == "dead" for stage in batches.stages.read()))


HANGING = """
import os, sys, time
from flexiclip.config import DataConfig
from flexiclip.data.batch import BatchSpec, RankSteps
from flexiclip.data.dataset import open_sources
from flexiclip.data.loader import train_loader
from kit.shards import word_tokenizer

config = DataConfig(train=sys.argv[1], workers=int(sys.argv[2]))
sources = open_sources(config, 0)
os.remove(sys.argv[1])
os.mkfifo(sys.argv[1])
steps = RankSteps(seed=0, global_batch_size=2, start_step=0, steps=9)
batches = train_loader(config, BatchSpec((8, 8), "bilinear", word_tokenizer), steps, sources)
"""
"""A trainer whose so many workers will hang in their first read: the shard has become a FIFO since it was indexed."""

FAILING_TRAINER = f"""
{HANGING}
import _thread, signal, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would this trainer
def fail():
    while batches.stages.read()[0].stage != "reading":
        time.sleep(0.01)
    print("hangs", flush=True)
    _thread.interrupt_main()
threading.Thread(target=fail, daemon=True).start()
list(batches)
"""


@pytest.mark.slow
def test_a_hanging_worker_does_not_keep_the_trainer(tmp_path: Path) -> None:
    """The trainer fails while its worker waits for ever in a read: the process must end all the same."""
    shard = write_samples(tmp_path / "x.tar", [good_sample(n) for n in range(3)])
    done = subprocess.run(
        [sys.executable, "-c", FAILING_TRAINER, str(shard), "1"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout == "hangs\n"
    assert "KeyboardInterrupt" in done.stderr
    assert done.returncode not in (0, None)


KILLED_TRAINER = f"""
import multiprocessing, sys
multiprocessing.set_start_method(sys.argv[3])
{HANGING}
iterator = iter(batches)
while any(stage.stage != "reading" for stage in batches.stages.read()):
    time.sleep(0.01)
print(*(stage.pid for stage in batches.stages.read()), flush=True)
next(iterator)
"""


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_hanging_workers_leave_with_a_trainer_that_is_killed(tmp_path: Path, method: str) -> None:
    """kill -9 of a trainer must not leave processes behind, for each has a gigabyte mapped and the machine is used again."""
    shard = write_samples(tmp_path / "x.tar", [good_sample(n) for n in range(3)])
    command = [sys.executable, "-c", KILLED_TRAINER, str(shard), "2", method]
    with subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        pids = [int(pid) for pid in trainer.stdout.readline().split()]
        assert len(pids) == 2
        assert all(alive(pid) for pid in pids)
        trainer.kill()
    wait_until(lambda: not any(alive(pid) for pid in pids))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


BESIDE_ANOTHER_LOADER = """
import os, signal, sys
from flexiclip.config import DataConfig
from flexiclip.data.batch import BatchSpec, RankSteps
from flexiclip.data.loader import train_loader
from kit.shards import word_tokenizer
from torch.utils.data import DataLoader

assert list(DataLoader([1, 2], batch_size=None, num_workers=1)) == [1, 2]
steps = RankSteps(seed=0, global_batch_size=2, start_step=0, steps=900)
batches = train_loader(DataConfig(train=sys.argv[1], workers=1), BatchSpec((8, 8), "bilinear", word_tokenizer), steps)
passing = iter(batches)
next(passing)
os.kill(batches.stages.read()[0].pid, signal.SIGKILL)
print(sum(range(10**7)))  # the signal of its death arrives here
"""


def test_a_worker_that_is_killed_interrupts_nothing_beside_another_loader(tmp_path: Path) -> None:
    """torch's handler of SIGCHLD, set by any loader of the process, would raise in the middle of whatever the trainer does."""
    shard = write_samples(tmp_path / "x.tar", [good_sample(n) for n in range(3)])
    command = [sys.executable, "-c", BESIDE_ANOTHER_LOADER, str(shard)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "49999995000000\n"), done.stderr
