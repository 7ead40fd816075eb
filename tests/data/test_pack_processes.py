"""`flexiclip data pack` as a real program: in several processes, killed in the middle, and called again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from kit.shards import jpeg

from flexiclip.data.samples import open_samples

ROWS, SHARD, SIZE = 2000, 20, (32, 24)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    for row in range(ROWS):
        (folder / f"{row}.jpg").write_bytes(jpeg(row, SIZE))
    lines = [f"{row}.jpg,{'' if row % 100 == 7 else f'caption {row}'}" for row in range(ROWS)]
    (folder / "table.csv").write_text("\n".join(["filepath,title", *lines]) + "\n")
    return folder / "table.csv"


def command(table: Path, output: Path, processes: int = 2) -> list[str]:
    options = ["--shard-size", str(SHARD), "--processes", str(processes)]
    return [sys.executable, "-m", "flexiclip", "data", "pack", str(table), "--output", str(output), *options]


def finished(output: Path) -> list[Path]:
    return sorted(output.glob("train-*.tar"))


def wait_for_shards(output: Path, count: int) -> None:
    deadline = time.monotonic() + 300
    while len(finished(output)) < count:
        assert time.monotonic() < deadline, "no shards"
        time.sleep(0.01)


def started(*call: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait()


def check_whole(output: Path, said: str) -> None:
    good = [row for row in range(ROWS) if row % 100 != 7]
    store = open_samples([str(path) for path in finished(output)], ["jpg"], ["txt"], str(output.with_name("index")))
    assert [store.key(*store.locate(n)) for n in range(len(store))] == [f"{row:09d}" for row in good]
    assert [store[n].captions for n in range(0, len(store), 50)] == [(f"caption {row}",) for row in good[::50]]
    assert [store.member(*store.locate(n), "jpg") for n in range(0, len(store), 50)] == [jpeg(row, SIZE) for row in good[::50]]
    bad = [json.loads(line)["row"] for line in (output / "bad_rows.jsonl").read_text().splitlines()]
    assert bad == [row for row in range(ROWS) if row % 100 == 7]
    assert f"holds {len(good):,} samples (jpg) in {ROWS // SHARD} shards" in said
    assert "20 bad rows" in said
    names = {path.name for path in output.iterdir()}
    assert names == {"bad_rows.jsonl", "dataset.json", *(path.name for path in finished(output))}


def test_killed_in_the_middle_it_goes_on_without_a_duplicate_or_a_loss(table: Path, tmp_path: Path) -> None:
    """kill -9 of the first process alone: its workers leave by themselves."""
    output = tmp_path / "out"
    for process in started(*command(table, output)):
        wait_for_shards(output, 3)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert not alive, "no process goes on writing"
    kept = {path.name: path.stat().st_ino for path in finished(output)}
    assert 3 <= len(kept) < ROWS // SHARD
    assert not (output / "dataset.json").exists()
    done = subprocess.run(command(table, output), capture_output=True, text=True, check=True)
    check_whole(output, done.stdout)
    assert {path.name: path.stat().st_ino for path in finished(output) if path.name in kept} == kept


def test_ctrl_c_ends_all_processes_and_leaves_no_half_shard(table: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    for process in started(*command(table, output)):
        wait_for_shards(output, 1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 130
        assert "Traceback" not in said
    assert not list(output.glob(".train-*"))


def test_a_process_that_is_killed_is_named(table: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    for process in started(*command(table, output)):
        wait_for_shards(output, 1)
        workers = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
        os.kill(workers[0].pid, signal.SIGKILL)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "a process that wrote shards was killed" in said
