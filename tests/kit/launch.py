"""Real runs for the tests: one process a rank, with the environment that torchrun gives it, all of it cleaned up afterwards.

`run_ranks` forks its ranks from a server that has imported what they need (kit/preload.py), which saves ten seconds a run.
`Command` starts the command line itself, for the tests that send signals.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.forkserver import ensure_running
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from flexiclip.model_folder import read_weights
from flexiclip.train.logs import read_lines
from kit.overrides import last_of_each

TESTS = str(Path(__file__).parents[1])

TIMEOUT = 240.0
"""Seconds for one run: DeepSpeed's first start on a machine compiles an extension for about a minute."""

TIMINGS = ("images_per_s", "data_s", "step_s")
"""The keys of metrics.jsonl that the clock decides."""

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
"""On the CPU over gloo, also where there is a GPU; one thread a rank, so that ranks do not fight over the cores."""

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["kit.preload"])


@dataclass(frozen=True)
class Trained:
    """A run folder, read."""

    folder: Path

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """metrics.jsonl."""
        return read_lines(self.folder / "metrics.jsonl")

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """samples.jsonl: step, seqhw and sample names of every step."""
        return read_lines(self.folder / "samples.jsonl")

    def column(self, name: str) -> np.ndarray:
        """One key of every row, float64."""
        return np.array([row[name] for row in self.rows], dtype=np.float64)

    def timeless(self) -> list[dict[str, Any]]:
        """The rows without what the clock decides."""
        return [{key: value for key, value in row.items() if key not in TIMINGS} for row in self.rows]

    def checkpoint(self, step: int) -> Path:
        """The folder of a checkpoint."""
        return self.folder / "checkpoints" / f"step-{step}"

    def weights(self) -> dict[str, Tensor]:
        """The model folder's parameters."""
        return read_weights(self.folder / "model" / "model.safetensors")


def flexiclip_main(*argv: str) -> int:
    """The console script. Of overrides of one key the last is taken."""
    from flexiclip.__main__ import main

    return main(last_of_each(argv))


def trained(config: Any, evaluators: Callable[[Any], dict[str, float]]) -> int:
    """Train with evaluators of the test's own; the exit code and the line are the console script's."""
    from flexiclip.errors import RunError
    from flexiclip.train.trainer import train

    try:
        train(config, evaluators)
    except RunError as error:
        print(f"flexiclip: {error}", file=sys.stderr)
        return 1
    return 0


def run_ranks(world: int, log: Path, target: Callable[..., int | None], *arguments: Any, timeout: float = TIMEOUT) -> list[int]:
    """Call `target(*arguments)` in `world` ranks, their output in LOG.RANK; returns their exit codes, -9 after the timeout."""
    with started_ranks(world, log, target, *arguments) as ranks:
        _wait(ranks, time.monotonic() + timeout)
    return [int(process.exitcode or 0) for process in ranks]


@contextmanager
def started_ranks(world: int, log: Path, target: Callable[..., int | None], *arguments: Any) -> Iterator[list[BaseProcess]]:
    """The same ranks while they run. Those left at the end of the block are killed, with the processes that they started."""
    os.environ.update(ENVIRONMENT)  # the server hands its environment down; it starts with the first run
    if _server.get_start_method() == "forkserver":  # scripts/mutation forks ranks from pytest itself
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", TESTS, prepend=os.pathsep)  # where the server finds kit
            ensure_running()
    port = free_port()
    ranks = [_server.Process(target=_rank, args=(r, world, port, f"{log}.{r}", target, arguments)) for r in range(world)]
    try:
        for process in ranks:
            process.start()
        yield ranks
    finally:
        for process in ranks:
            for pid in reversed(descendants(process.pid or 0) if process.is_alive() else []):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.join()


def leave_in_time(ranks: Sequence[BaseProcess], seconds: float = 60.0) -> float:
    """Assert that all end within so many seconds; returns how many it took."""
    began = time.monotonic()
    for process in ranks:
        process.join(max(0.0, began + seconds - time.monotonic()))
    assert all(process.exitcode is not None for process in ranks), "a rank is still there"
    return time.monotonic() - began


def said(log: Path, rank: int) -> list[str]:
    """The lines that the command line ends a rank with. There is no traceback beside them."""
    text = Path(f"{log}.{rank}").read_text()
    assert "Traceback" not in text, text
    return [line for line in text.splitlines() if line.startswith("flexiclip: ")]


def _wait(ranks: Sequence[BaseProcess], deadline: float) -> None:
    """Until all have ended. When one fails, the others, which may be waiting for it, have five seconds to follow."""
    while any(process.is_alive() for process in ranks) and time.monotonic() < deadline:
        if any(process.exitcode for process in ranks):
            deadline = min(deadline, time.monotonic() + 5)
        time.sleep(0.02)


def _rank(rank: int, world: int, port: int, log: str, target: Callable[..., int | None], arguments: tuple[Any, ...]) -> None:
    os.environ.update(rank_environment(rank, world, port))
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(target(*arguments))


def rank_environment(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun tells a rank."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    return {**ENVIRONMENT, "MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in numbers.items()}}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Command:
    """Started commands, each the leader of its own session, killed with their workers at the end of the block."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def train(self, world: int, log: Path, *argv: str) -> None:
        """`python -m flexiclip train ARGV` in every rank."""
        port = free_port()
        for rank in range(world):
            self.start([sys.executable, "-m", "flexiclip", "train", *argv], f"{log}.{rank}", rank_environment(rank, world, port))

    def torchrun(self, world: int, log: Path, *argv: str) -> None:
        """`torchrun --nproc-per-node WORLD -m flexiclip ARGV`."""
        launcher = ["torch.distributed.run", "--nproc-per-node", str(world), "--master-port", str(free_port())]
        self.start([sys.executable, "-m", *launcher, "-m", "flexiclip", *argv], str(log), ENVIRONMENT)

    def deepspeed(self, world: int, log: Path, *argv: str) -> None:
        """`deepspeed --num_gpus WORLD --module flexiclip ARGV`, which on a CPU counts processes."""
        launcher = ["deepspeed.launcher.runner", "--num_gpus", str(world), "--master_port", str(free_port())]
        self.start([sys.executable, "-m", *launcher, "--module", "flexiclip", *argv], str(log), ENVIRONMENT)

    def start(self, command: list[str], log: str, environment: dict[str, str]) -> None:
        """Any command, under both environments, its output in LOG. Of overrides of one key the last is taken."""
        with open(log, "w") as file:
            self.started.append(
                subprocess.Popen(
                    last_of_each(command),
                    stdout=file,
                    stderr=file,
                    text=True,
                    env={**os.environ, **environment},
                    start_new_session=True,
                )
            )

    def signal(self, number: int) -> None:
        """Send a signal to every started process, not to its children."""
        for process in self.started:
            process.send_signal(number)

    def signal_groups(self, number: int) -> None:
        """Send a signal to every started process and its children."""
        for process in self.started:
            os.killpg(process.pid, number)

    def wait(self, timeout: float = TIMEOUT) -> list[int]:
        """Exit codes of all."""
        deadline = time.monotonic() + timeout
        return [process.wait(max(0.1, deadline - time.monotonic())) for process in self.started]

    def wait_for(self, condition: Callable[[], bool], timeout: float = TIMEOUT) -> None:
        """Until the condition holds; the commands must still run by then."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, "the run does not get there"
            assert all(process.poll() is None for process in self.started), "the run ended before the signal"
            time.sleep(0.005)

    def kill(self) -> None:
        """SIGKILL for every process and all that they started. torchrun gives each rank a session of its own."""
        family = [pid for process in self.started if process.poll() is None for pid in descendants(process.pid)]
        for pid in family:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for process in self.started:
            process.wait(10)


def descendants(pid: int) -> list[int]:
    """A process and its children, theirs too, from /proc."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(found for child in children for found in descendants(int(child)))]
