"""Samples that cannot be read: training runs through, and every one of them is named."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from kit.launch import Command, Trained, descendants, flexiclip_main, run_ranks
from kit.train_shards import sample, write_shard

from flexiclip.__main__ import main
from flexiclip.train.logs import read_lines

BAD = {"s0003": "image cannot be decoded", "s0009": "empty caption", "s0017": "no image"}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> str:
    """24 samples in two shards; the second holds a broken JPEG, an empty caption and a sample without an image."""
    folder = tmp_path_factory.mktemp("faulty")
    samples = [sample(number) for number in range(24)]
    samples[3]["jpg"] = b"\xff\xd8\xff\xe0" + samples[3].pop("png")[:200]
    samples[9]["txt"] = b" \n"
    del samples[17]["png"]
    write_shard(folder / "train-0000.tar", samples[18:])
    write_shard(folder / "train-0001.tar", samples[:18])
    return str(folder / "train-*.tar")


def assert_named(rows: list[dict[str, str]]) -> None:
    assert {row["key"]: row["reason"].split(":")[0] for row in rows} == BAD
    assert all(row["shard"].endswith("train-0001.tar") for row in rows)
    assert len(rows) == 3, "named more than once"


def test_training_runs_through_and_names_each_once(fit: Callable[..., Trained], faulty: str) -> None:
    """Three epochs on two ranks: every step is a full batch of good samples, the same on one rank."""
    argv = (f"data.train={faulty}", "train.steps=3 epochs", "data.workers=1", "data.max_bad_fraction=0.2")
    run, alone = fit(2, *argv), fit(1, *argv)
    assert len(run.rows) == 6
    assert_named(read_lines(run.folder / "bad_samples.jsonl"))
    assert_named(read_lines(alone.folder / "bad_samples.jsonl"))
    assert run.samples == alone.samples
    for step in run.samples:
        assert len(step["samples"]) == 12
        assert not {name.split("/")[1] for name in step["samples"]} & BAD.keys()


def test_samples_met_before_a_checkpoint_are_named_by_it(recipe: list[str], faulty: str, tmp_path: Path) -> None:
    """A resumed run does not meet them again, so they must not wait for the next logged row."""
    folder = tmp_path / "run"
    rare = [
        "train.steps=100000",
        "train.log_every=100000",
        "train.save_every=2",
        "data.max_bad_fraction=0.2",
        f"data.train={faulty}",
    ]
    with Command() as command:
        command.train(1, tmp_path / "log", *recipe, f"run_dir={folder}", *rare)
        command.wait_for((folder / "checkpoints" / "latest").is_file)
        command.kill()
    assert_named(read_lines(folder / "bad_samples.jsonl"))


def test_too_many_end_the_run_with_the_reason_and_lose_nothing(
    fit: Callable[..., Trained], recipe: list[str], faulty: str, tmp_path: Path
) -> None:
    """Three of 24 are bad, and no run ends for fewer than eight. It is saved, and goes on with a higher limit."""
    folder = tmp_path / "run"
    argv = [f"data.train={faulty}", "train.steps=6", "train.save_every=0"]
    codes = run_ranks(2, tmp_path / "log", flexiclip_main, "train", *recipe, f"run_dir={folder}", *argv)
    assert codes == [2, 2]
    said = (tmp_path / "log.0").read_text()
    (line,) = (line for line in said.splitlines() if "data.max_bad_fraction=0.1" in line)
    met, read = (int(number) for number in re.search(r"(\d+) of (\d+) samples", line).groups())  # type: ignore[union-attr]
    stopped = Trained(folder).rows[-1]["step"]
    assert 8 <= met < 12
    assert read == 12 * stopped + met
    assert all(reason in line for reason in BAD.values())
    assert "Traceback" not in said
    assert_named(read_lines(folder / "bad_samples.jsonl"))

    run = fit(2, *argv, "data.max_bad_fraction=0.2", folder=folder)
    assert [row["step"] for row in run.rows] == list(range(1, 7))
    assert f"going on from {folder}/checkpoints/step-{stopped}\n" in (tmp_path / "log.0").read_text()


def test_a_damaged_shard_is_named_and_what_is_whole_of_it_is_trained(fit: Callable[..., Trained], tmp_path: Path) -> None:
    """13 samples in one shard, 5 whole ones in another that ends early, a third that is an error page: one epoch of 18."""
    write_shard(tmp_path / "a.tar", [sample(n) for n in range(13)])
    cut = Path(write_shard(tmp_path / "b.tar", [sample(n) for n in range(13, 24)]))
    content = cut.read_bytes()
    cut.write_bytes(content[: content.index(b"s0018.txt") - 100])
    (tmp_path / "c.tar").write_text("<html>503</html>" * 99)
    argv = (f"data.train={tmp_path / '[abc].tar'}", "train.steps=1", "train.global_batch_size=18")
    run, alone = fit(2, *argv), fit(1, *argv)
    assert run.samples == alone.samples
    assert sorted(run.samples[0]["samples"]) == [f"{'a' if n < 13 else 'b'}.tar/s{n:04d}" for n in range(18)]
    rows = read_lines(run.folder / "bad_samples.jsonl")
    assert [(Path(row["shard"]).name, row["key"]) for row in rows] == [("b.tar", ""), ("c.tar", "")]
    assert rows[0]["reason"].startswith("damaged or truncated at byte")
    assert rows[0]["reason"].endswith("(5 samples before that are used)")
    assert "not a plain tar file" in rows[1]["reason"]
    said = Path(f"{run.folder.with_name('log')}.0").read_text()
    assert f"a damaged shard, {cut}: damaged or truncated" in said
    assert "and 1 more (bad_samples.jsonl)" in said


def test_too_many_damaged_shards_are_refused(recipe: list[str], tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.tar").write_bytes(b"")
    write_shard(tmp_path / "d.tar", [sample(n) for n in range(12)])
    argv = [f"data.train={tmp_path / '*.tar'}", f"run_dir={tmp_path / 'run'}"]
    assert run_ranks(1, tmp_path / "log", flexiclip_main, "train", *recipe, *argv) == [2]
    said = (tmp_path / "log.0").read_text()
    assert "3 of 4 shards are damaged, more than data.max_bad_fraction=0.1" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_data_worker_that_is_killed_ends_the_run_in_one_line(recipe: list[str], tmp_path: Path) -> None:
    """As the kernel does for want of memory. The checkpoint before it is what the next start goes on from."""
    folder = tmp_path / "run"
    argv = [f"run_dir={folder}", "data.workers=1", "data.prefetch=1", "train.steps=100000", "train.save_every=2"]
    with Command() as command:
        command.train(1, tmp_path / "log", *recipe, *argv)
        command.wait_for((folder / "checkpoints" / "latest").is_file)
        (trainer,) = command.started
        workers = [
            pid for pid in descendants(trainer.pid)[1:] if "resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_text()
        ]
        assert len(workers) == 1, workers
        os.kill(workers[0], signal.SIGKILL)
        assert command.wait() == [1]
    said = (tmp_path / "log.0").read_text()
    assert f"data worker 0 (pid {workers[0]}) has died at " in said
    assert "Traceback" not in said
    assert (folder / "checkpoints" / "latest").is_file()


def test_data_check_names_them_and_exits_with_1(faulty: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", faulty]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "3 bad samples"
    assert len(lines) == len(BAD) + 7, "the totals: counts, a table of sizes and lengths, and the number of bad samples"
    for line, (key, reason) in zip(lines, BAD.items(), strict=False):
        assert "train-0001.tar" in line
        assert f"{key}: {reason}" in line
