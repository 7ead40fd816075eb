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

import datasets
import psutil
import pytest
from kit.shards import jpeg, write_samples

from flexiclip.data.check import check_shards
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


MANY = 10_000
FORMS = ("table", "parquet", "class folders", "saved", "shards")


def many(folder: Path, form: str) -> Path:
    """10,000 images with captions (of class folders: with classes), in one of the forms that can be packed."""
    drawn = [jpeg(number, (8, 8)) for number in range(100)]
    rows = [(drawn[row % 100], f"caption {row}") for row in range(MANY)]
    if form in ("table", "class folders"):
        for row, (image, _) in enumerate(rows):
            path = folder / "images" / f"class {row % 10}" / f"{row:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image)
        lines = [f"images/class {row % 10}/{row:05d}.jpg,{caption}" for row, (_, caption) in enumerate(rows)]
        (folder / "table.csv").write_text("\n".join(["filepath,title", *lines]) + "\n")
        return folder / ("table.csv" if form == "table" else "images")
    if form == "shards":
        (folder / "tars").mkdir()
        for shard in range(4):
            part = range(shard * MANY // 4, (shard + 1) * MANY // 4)
            samples = [{"__key__": f"{row:09d}", "jpg": rows[row][0], "txt": rows[row][1].encode()} for row in part]
            write_samples(folder / "tars" / f"{shard:05d}.tar", samples)
        return folder / "tars"
    columns = {"image": [{"bytes": image, "path": None} for image, _ in rows], "text": [caption for _, caption in rows]}
    made = datasets.Dataset.from_dict(
        columns, features=datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    )
    if form == "saved":
        made.save_to_disk(folder / "saved", num_shards=3)
    else:
        made.to_parquet(folder / "many.parquet", batch_size=300)
    return folder / ("saved" if form == "saved" else "many.parquet")


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_ten_thousand_rows_of_each_form_survive_a_kill_and_pass_the_check(form: str, tmp_path: Path) -> None:
    source, output = many(tmp_path, form), tmp_path / "out"
    call = [sys.executable, "-m", "flexiclip", "data", "pack", str(source), "--output", str(output), "--shard-size", "500"]
    for process in started(*call, "--processes", "2"):
        wait_for_shards(output, 2)
        process.kill()
        process.wait()
    done = subprocess.run([*call, "--processes", "2"], capture_output=True, text=True, check=True)
    assert f"holds {MANY:,} samples (jpg) in 20 shards" in done.stdout
    captions = [] if form == "class folders" else ["txt"]
    found = check_shards([str(path) for path in finished(output)], ["jpg"], captions)
    assert (found.bad, found.samples) == ([], MANY)
    store = open_samples([str(path) for path in finished(output)], ["jpg"], captions)
    assert [store.key(*store.locate(row)) for row in range(MANY)] == [f"{row:09d}" for row in range(MANY)]
    if captions:
        assert [store.captions(*store.locate(row)) for row in range(MANY)] == [(f"caption {row}",) for row in range(MANY)]
    else:
        assert {store[row].meta["class"] for row in range(0, MANY, 1000)} == {f"class {number}" for number in range(10)}
