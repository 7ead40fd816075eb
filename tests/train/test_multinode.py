"""Two hosts train as one process does, started by scripts/launch, and what becomes of a host when the other is lost.

The hosts are network namespaces of this machine (tests/kit/namespaces.py); where they are refused, the tests skip and say why.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from kit.alike import assert_same_training, assert_same_weights
from kit.launch import Command, Trained, descendants
from kit.namespaces import Host, kill_children, two_hosts
from kit.overrides import last_of_each

LAUNCH = Path(__file__).parents[2] / "scripts" / "launch"
PATH = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
Hosts = tuple[Host, Host]


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """Two hosts, gone after the test."""
    context = two_hosts()
    try:
        pair = context.__enter__()
    except OSError as refusal:
        pytest.skip(f"two hosts need network namespaces, which this machine refuses: {refusal}")
    try:
        yield pair
    finally:
        context.__exit__(None, None, None)


def torchrun(hosts: Hosts, nnodes: str = "2") -> dict[str, str]:
    """What torchrun.sh is told on each host, besides its own address."""
    return {"NNODES": nnodes, "RDZV_ENDPOINT": f"{hosts[0].address}:29500", "NPROC_PER_NODE": "1", "MAX_RESTARTS": "0", **PATH}


def assert_ended(codes: list[int], *logs: Path) -> None:
    assert codes == [0] * len(logs), "".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in logs)


def slurm_command(hosts: Hosts, recipe: list[str]) -> tuple[dict[str, str], list[str]]:
    """What slurm.sh would hand to srun: the variables it exports, and the command of each host."""
    job = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "HEAD_ADDR": hosts[0].address, "LAUNCH_DIR": str(LAUNCH)}
    command = ["env", "FLEXICLIP_DRY_RUN=1", "bash", str(LAUNCH / "slurm.sh"), *recipe]
    words = shlex.split(subprocess.run(command, env={**os.environ, **job}, capture_output=True, text=True, check=True).stdout)
    at = words.index("srun")
    assert words[at : at + 4] == ["srun", "--ntasks-per-node=1", "--kill-on-bad-exit=0", "--wait=300"]
    return dict(word.split("=", 1) for word in words[:at]), words[at + 4 :]


@pytest.mark.slow
def test_torchrun_as_slurm_starts_it(hosts: Hosts, recipe: list[str], reference: Trained, tmp_path: Path) -> None:
    exported, argv = slurm_command(hosts, [*recipe, f"run_dir={tmp_path / 'run'}"])
    assert exported == {"NNODES": "2", "RDZV_ENDPOINT": "10.77.0.1:29500", "RDZV_ID": "flexiclip-7"}
    logs = [tmp_path / host.address for host in hosts]
    with Command() as command:
        for host, log in zip(hosts, logs, strict=True):
            host.start(command, log, argv, **exported, NPROC_PER_NODE="1", MAX_RESTARTS="0", LOCAL_ADDR=host.address, **PATH)
        assert_ended(command.wait(), *logs)
    assert_same_training(Trained(tmp_path / "run"), reference)
    assert_same_weights(Trained(tmp_path / "run"), reference)


@pytest.mark.slow
def test_deepspeed_without_ssh(hosts: Hosts, recipe: list[str], reference: Trained, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("".join(f"{host.address} slots=1\n" for host in hosts))
    argv = ["bash", str(LAUNCH / "deepspeed.sh"), *recipe, f"run_dir={tmp_path / 'run'}"]
    argv += ["engine.kind=deepspeed", "engine.zero_stage=2"]
    given = {"HOSTFILE": str(tmp_path / "hosts"), "LAUNCHER": "none", "MASTER_ADDR": hosts[0].address, **PATH}
    logs = [tmp_path / host.address for host in hosts]
    with Command() as command:
        for rank, (host, log) in enumerate(zip(hosts, logs, strict=True)):
            host.start(command, log, argv, **given, NODE_RANK=str(rank))
        assert_ended(command.wait(), *logs)
    assert_same_training(Trained(tmp_path / "run"), reference)
    assert_same_weights(Trained(tmp_path / "run"), reference)


def test_a_scheduler_can_tell_stopped_from_complete(recipe: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXICLIP_STOPPED_CODE", "75")
    argv = [*recipe, f"run_dir={tmp_path / 'run'}", "train.save_every=1"]
    with Command() as command:
        command.train(1, tmp_path / "stopped", *argv, "train.steps=100000")
        command.wait_for((tmp_path / "run" / "checkpoints" / "latest").is_file)
        command.signal(signal.SIGTERM)
        assert command.wait() == [75]


@pytest.mark.slow
def test_kubernetes_pods_and_the_drain_of_one(hosts: Hosts, recipe: list[str], reference: Trained, tmp_path: Path) -> None:
    """The Job's own command, under its own variables but for the addresses that a cluster would give.

    SIGTERM to one pod: no pod may count as complete, or its Job would not make it again. The pods made anew end the run.
    """
    *_, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    given = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
    run = Trained(tmp_path / "run")
    name, *overrides = [*recipe, f"run_dir={run.folder}", "train.save_every=1", "train.save_in_background=false"]
    given |= {"RECIPE": name, "OVERRIDES": " ".join(overrides), "NPROC_PER_NODE": "1", "HEAD_ADDR": hosts[0].address, **PATH}

    def start_pods(command: Command, life: str) -> list[Path]:
        logs = [tmp_path / f"{life}-{host.address}" for host in hosts]
        for index, (host, log) in enumerate(zip(hosts, logs, strict=True)):
            argv = [*container["command"], *container["args"]]
            host.start(command, log, argv, **given, JOB_COMPLETION_INDEX=str(index), POD_IP=host.address)
        return logs

    with Command() as command:
        logs = start_pods(command, "drained")
        command.wait_for((run.folder / "checkpoints" / "latest").is_file)
        command.started[1].send_signal(signal.SIGTERM)
        assert 0 not in command.wait()
    assert "stopped by a signal" in logs[0].read_text()
    with Command() as command:
        logs = start_pods(command, "anew")
        assert_ended(command.wait(), *logs)
    assert "going on from" in logs[0].read_text()
    assert_same_training(run, reference)


@pytest.mark.slow
def test_hosts_with_disks_of_their_own(hosts: Hosts, recipe: list[str], fit: Callable[..., Trained], tmp_path: Path) -> None:
    """Checkpoints in a store: each host has its own run folder, the tokenizer and the checkpoints reach it all the same.

    fsspec's local:// stands for the store: it is reached through fsspec, as an object store is, where file:// is a folder.
    """
    own = ["tokenizer.path=null", "tokenizer.vocab_size=120"]
    store = tmp_path / "store"
    argv = ["sh", "-c", 'cd "$DISK" && exec "$@"', "sh", "bash", str(LAUNCH / "torchrun.sh")]
    argv += [*last_of_each([*recipe, *own]), "run_dir=run"]
    argv += [f"train.checkpoint_dir=local://{store}", "train.save_every=1", "train.save_in_background=false"]

    def start_hosts(command: Command, life: str) -> list[Path]:
        logs = [tmp_path / f"{life}-{host.address}" for host in hosts]
        for host, log in zip(hosts, logs, strict=True):
            disk = tmp_path / f"disk-{host.address}"
            disk.mkdir(exist_ok=True)
            host.start(command, log, argv, **torchrun(hosts), LOCAL_ADDR=host.address, DISK=str(disk))
        return logs

    with Command() as command:
        start_hosts(command, "stopped")
        command.wait_for((store / "latest").is_file)
        command.signal(signal.SIGTERM)
        command.wait()
    with Command() as command:
        logs = start_hosts(command, "anew")
        assert_ended(command.wait(), *logs)
    assert "going on from" in logs[0].read_text()
    first, second = (tmp_path / f"disk-{host.address}" / "run" for host in hosts)
    assert (first / "tokenizer.model").read_bytes() == (second / "tokenizer.model").read_bytes()
    assert not (second / "metrics.jsonl").exists()
    assert_same_training(Trained(first), fit(1, *own))


def cut(hosts: Hosts, _: Command) -> None:
    """As a pulled cable: no side hears anything any more."""
    hosts[1].cut()


def power_off(_: Hosts, command: Command) -> None:
    """Everything on the second host is gone at once."""
    kill_children(command.started[1].pid)


def drain(_: Hosts, command: Command) -> None:
    """As a scheduler does that needs the second host: SIGTERM to its launcher."""
    command.started[1].send_signal(signal.SIGTERM)


def wait_until_alone(launchers: list[int]) -> float:
    """Seconds until no launcher has a rank left, but perhaps one that it has not yet seen to be dead; at most a minute."""
    began = time.monotonic()
    while any(is_running(rank) for pid in launchers for rank in descendants(pid)[1:]):
        assert time.monotonic() - began < 60, "a rank stays"
        time.sleep(0.05)
    return time.monotonic() - began


def is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "leaves"), [(cut, (0, 1)), (power_off, (0,))])
def test_loss_of_a_host_is_said_and_one_host_goes_on(
    hosts: Hosts,
    recipe: list[str],
    reference: Trained,
    tmp_path: Path,
    fault: Callable[[Hosts, Command], None],
    leaves: tuple[int, ...],
) -> None:
    """The hosts that are left leave within a minute, naming the other's rank; the same command on one host ends the run."""
    run = Trained(tmp_path / "run")
    settings = ["train.save_every=1", "train.save_in_background=false", "train.rank_timeout_s=5"]
    argv = ["bash", str(LAUNCH / "torchrun.sh"), *recipe, f"run_dir={run.folder}", *settings]
    logs = [tmp_path / host.address for host in hosts]
    with Command() as command:
        for host, log in zip(hosts, logs, strict=True):
            host.start(command, log, argv, **torchrun(hosts), LOCAL_ADDR=host.address)
        command.wait_for((run.folder / "checkpoints" / "latest").is_file)
        fault(hosts, command)
        seconds = wait_until_alone([command.started[left].pid for left in leaves])
        print(f"{fault.__name__}: the ranks left after {seconds:.1f} s, at step {Trained(run.folder).rows[-1]['step']}")
        assert command.started[0].wait(60) == 1  # the other torchrun waits on for the meeting, which was on this host
    for left in leaves:
        assert re.search(rf"^flexiclip: rank {1 - left} \(.*\) is lost: ", logs[left].read_text(), re.MULTILINE)

    with Command() as command:
        hosts[0].start(command, tmp_path / "alone", argv, **torchrun(hosts, "1"))
        assert_ended(command.wait(), tmp_path / "alone")
    assert "going on from" in (tmp_path / "alone").read_text()
    assert_same_training(run, reference)
    assert_same_weights(run, reference)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [power_off, drain])
def test_elastic_torchrun_goes_on_with_the_host_that_is_left(
    hosts: Hosts, recipe: list[str], reference: Trained, tmp_path: Path, fault: Callable[[Hosts, Command], None]
) -> None:
    """Nobody starts anything again: the other goes on alone from the checkpoint, and ends as if nothing had been."""
    run = Trained(tmp_path / "run")
    argv = [
        "bash",
        str(LAUNCH / "torchrun.sh"),
        *recipe,
        f"run_dir={run.folder}",
        "train.save_every=1",
        "train.save_in_background=false",
    ]
    logs = [tmp_path / host.address for host in hosts]
    given = {**torchrun(hosts, "1:2"), "MAX_RESTARTS": "3", "LAST_CALL_S": "20", "FLEXICLIP_STOPPED_CODE": "75"}
    with Command() as command:
        for host, log in zip(hosts, logs, strict=True):
            host.start(command, log, argv, **given, LOCAL_ADDR=host.address)
        command.wait_for((run.folder / "checkpoints" / "latest").is_file)
        fault(hosts, command)
        assert command.wait()[0] == 0, logs[0].read_text()[-3000:]
    assert "going on from" in logs[0].read_text()
    assert_same_training(run, reference)
    assert_same_weights(run, reference)
