"""What a checkpoint holds, when it counts, which ones are kept, and what is said when data changed under it."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kit.alike import ENGINES
from kit.launch import Command, Trained, flexiclip_main, run_ranks
from kit.overrides import load_last
from kit.train_shards import sample, write_shard
from torch import Tensor

from flexiclip.errors import UserError
from flexiclip.train.checkpoint import Facts, Snapshot, open_checkpoint, read_state
from flexiclip.train.run_lock import RunLock
from flexiclip.train.stores import LocalStore, expendable

Fit = Callable[..., Trained]


def save_and_train_on(*argv: str) -> None:
    """In each rank: two steps, a snapshot, two steps more; the snapshot must still be what the state was when it was taken."""
    from flexiclip.train.objectives import Inputs
    from flexiclip.train.ranks import joined_ranks
    from flexiclip.train.setup import set_up
    from flexiclip.train.trainer import Recorder

    config = load_last(argv)
    with joined_ranks(config.engine.kind == "deepspeed", 1) as ranks:
        run = set_up(config, ranks, RunLock(), evaluates=False)
        recorder = Recorder(run, None)
        batches = iter(run.batches())

        def two_steps() -> None:
            for _ in range(2):
                run.stepper(Inputs.of(next(batches), ranks.device), run.schedule.seqhw(run.step), run.step, 1e-2)
                run.step += 1

        two_steps()
        taken = recorder._snapshot()
        snapshot = taken.owned() if taken is not None else None
        then = _cloned(snapshot) if snapshot is not None else None
        two_steps()
        now = recorder._snapshot()
        if not ranks.main:
            assert taken is None, "a rank that writes nothing holds what it helped to gather"
            return
        for part, before, after in zip((snapshot.weights, snapshot.moments), then, (now.weights, now.moments), strict=True):
            assert part.keys() == before.keys() == after.keys()
            assert all(torch.equal(part[name], before[name]) for name in part), "the snapshot follows the training"
            moved = [name for name in part if not torch.equal(part[name], after[name].cpu())]
            assert len(moved) == len(part), set(part) - set(moved)


def _cloned(snapshot: Snapshot) -> list[dict[str, Tensor]]:
    return [{name: tensor.clone() for name, tensor in part.items()} for part in (snapshot.weights, snapshot.moments)]


@pytest.mark.parametrize(
    ("world", "engine"),
    [
        (1, "torch"),
        (2, "zero3"),
        *(pytest.param(world, engine, marks=pytest.mark.slow) for world, engine in ((1, "zero0"), (2, "zero1"), (2, "zero2"))),
    ],
)
def test_training_on_does_not_reach_into_a_snapshot(recipe: list[str], tmp_path: Path, world: int, engine: str) -> None:
    argv = (*recipe, f"run_dir={tmp_path / 'run'}", *ENGINES[engine])
    codes = run_ranks(world, tmp_path / "log", save_and_train_on, *argv)
    assert codes == [0] * world, (tmp_path / "log.0").read_text()


@pytest.mark.slow
def test_written_in_the_background_or_not_it_is_the_same(fit: Fit) -> None:
    one, other = (
        fit(1, "train.save_every=5", "train.keep_last=4", f"train.save_in_background={how}") for how in ("true", "false")
    )
    for step in (5, 10, 15, 20):
        first, second = (open_checkpoint(run.checkpoint(step)) for run in (one, other))
        assert first.weights().keys() == second.weights().keys()
        for name, tensor in second.weights().items():
            assert torch.allclose(first.weights()[name], tensor, rtol=0, atol=1e-5), name
        for name, tensor in second.moments().items():
            assert torch.allclose(first.moments()[name], tensor, rtol=0, atol=1e-5), name


@pytest.mark.parametrize(
    ("steps", "step", "last", "every", "gone"),
    [
        ([10, 20, 30], 30, 2, None, [10]),
        ([10, 20, 30], 30, 5, None, []),
        ([3, 6, 9, 12, 15, 18], 18, 1, 5, [3, 9]),  # 6, 12 and 15 are the first at or beyond 5, 10 and 15
        ([100, 200], 200, 1, 100, []),
        ([10, 20, 100], 20, 1, None, [10]),  # 100 is of a run that was taken up again from an earlier checkpoint
    ],
)
def test_expendable_names_the_checkpoints_that_may_go(
    steps: list[int], step: int, last: int, every: int | None, gone: list[int]
) -> None:
    assert expendable(steps, step, last, every) == gone


def test_keep_every_keeps_them_for_good(fit: Fit) -> None:
    run = fit(1, "train.save_every=3", "train.keep_last=1", "train.keep_every=25%")
    found = {path.name for path in (run.folder / "checkpoints").iterdir()}
    assert found == {"step-6", "step-12", "step-15", "step-20", "latest"}


def test_killed_while_it_is_written_the_one_before_stays_the_latest(fit: Fit, recipe: list[str], tmp_path: Path) -> None:
    folder, root = tmp_path / "run", tmp_path / "run" / "checkpoints"
    often = [f"run_dir={folder}", "train.save_every=1", "train.steps=2000"]
    with Command() as command:
        command.train(1, tmp_path / "killed", *recipe, *often)
        command.wait_for(lambda: (root / "latest").is_file())
        assert run_ranks(1, tmp_path / "second", flexiclip_main, "train", *recipe, *often) == [2]
        said = (tmp_path / "second.0").read_text()
        assert f"run_dir={folder}: another process trains there (pid {command.started[0].pid} on " in said
        command.wait_for(lambda: any(root.glob(".step-*")))
        command.kill()
    name = LocalStore(root).latest()
    assert name is not None
    checkpoint = open_checkpoint(root / name)
    assert len(checkpoint.weights()) == len(Trained(folder).weights())
    assert f"step-{checkpoint.step}" == name
    began = time.monotonic()
    with RunLock() as lock:  # the claim of the killed run is there, and nobody waits for it
        lock.take(LocalStore(folder), "run_dir", pytest.fail)
    assert time.monotonic() - began < 2


@pytest.fixture(scope="module")
def saved(fit: Fit) -> Trained:
    return fit(1, "train.save_every=10")


def start_again(saved: Trained, recipe: list[str], tmp_path: Path, *argv: str, world: int = 1) -> tuple[list[int], str]:
    """A new life of a copy of the run; its exit codes and what it said."""
    if not (tmp_path / "run").exists():
        shutil.copytree(saved.folder, tmp_path / "run")
    codes = run_ranks(world, tmp_path / "log", flexiclip_main, "train", *recipe, f"run_dir={tmp_path / 'run'}", *argv)
    return codes, (tmp_path / "log.0").read_text()


def test_a_file_that_lost_its_end_is_found_before_training(saved: Trained, recipe: list[str], tmp_path: Path) -> None:
    shutil.copytree(saved.folder, tmp_path / "run")
    cut = tmp_path / "run" / "checkpoints" / "step-20" / "optimizer.safetensors"
    size = cut.stat().st_size
    os.truncate(cut, size - 1)
    codes, said = start_again(saved, recipe, tmp_path)
    assert codes == [2]
    assert f"step-20 is not a complete checkpoint (optimizer.safetensors has {size - 1} of {size} bytes)" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("change", [-1, 1, 4096, None], ids=["shorter", "longer", "much longer", "absent"])
@pytest.mark.parametrize("name", ["optimizer.safetensors", "model/model.safetensors", "model/config.yaml"])
def test_a_checkpoint_with_a_file_of_another_size_is_refused(tmp_path: Path, name: str, change: int | None) -> None:
    sizes = {"optimizer.safetensors": 9000, "model/model.safetensors": 7000, "model/config.yaml": 5000}
    for file, size in sizes.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(bytes(size))
    (tmp_path / "state.json").write_text(json.dumps({"step": 3, "skipped": 1, "files": sizes, "flops": 7}))
    assert open_checkpoint(tmp_path).facts == Facts(step=3, skipped=1, flops=7)
    if change is None:
        (tmp_path / name).unlink()
    else:
        os.truncate(tmp_path / name, sizes[name] + change)
    found = 0 if change is None else sizes[name] + change
    with pytest.raises(UserError, match=rf"is not a complete checkpoint \({name} has {found} of {sizes[name]} bytes\)"):
        open_checkpoint(tmp_path)


def test_names_in_a_state_never_leave_its_folder() -> None:
    for name in ("../other/secret", "/etc/passwd", "model/../../x", "a\\..\\b"):
        with pytest.raises(UserError, match="lies outside of it"):
            read_state(json.dumps({"step": 1, "files": {name: 3}}), "there")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"step": "x"}', '{"step": 1, "files": [1]}', '{"step": 1, "files": {"a": null}}']
)
def test_a_state_that_is_none_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError, match="not a complete checkpoint"):
        read_state(text, "there")


def test_latest_never_becomes_a_path(tmp_path: Path) -> None:
    (tmp_path / "latest").write_text("../../elsewhere\n")
    with pytest.raises(UserError, match=r"latest: .* is not a checkpoint: write a name such as step-100"):
        LocalStore(tmp_path).latest()


def test_never_starts_over_another_runs_checkpoints_elsewhere(fit: Fit, recipe: list[str], tmp_path: Path) -> None:
    """A folder outside of the run is not moved aside; the new run's first kill would go on from the old run's weights."""
    place = f"train.checkpoint_dir={tmp_path / 'elsewhere'}"
    fit(1, "train.steps=2", place)
    assert (tmp_path / "elsewhere" / "latest").read_text() == "step-2\n"
    argv = ("train.steps=2", place, f"run_dir={tmp_path / 'new'}")
    assert run_ranks(1, tmp_path / "log", flexiclip_main, "train", *recipe, *argv, "train.resume=never") == [2]
    assert "holds step-2 of an earlier run" in (tmp_path / "log.0").read_text()

    assert run_ranks(1, tmp_path / "log", flexiclip_main, "train", *recipe, *argv, "seed=3") == [2]
    assert f"{tmp_path / 'elsewhere'} holds a run with seed=0, not 3" in (tmp_path / "log.0").read_text()


def test_other_shards_are_said_when_a_run_goes_on(saved: Trained, recipe: list[str], tmp_path: Path) -> None:
    """The same recipe; behind its pattern one sample less. A fresh index is read, for the file has changed."""
    data = next(key for key in recipe if key.startswith("data.train="))
    shards = Path(data.removeprefix("data.train=")).parent
    shutil.copytree(shards, tmp_path / "moved")
    argv = [f"data.train={tmp_path / 'moved'}/train-{{0000..0002}}.tar", f"train.resume={saved.checkpoint(10)}", "train.steps=12"]
    _, said = start_again(saved, recipe, tmp_path / "same", *argv, f"run_dir={tmp_path / 'a'}")
    assert "going on from" in said
    assert "the training shards are not those" not in said

    write_shard(tmp_path / "moved" / "train-0001.tar", [sample(n) for n in range(37, 47)])
    _, said = start_again(saved, recipe, tmp_path / "other", *argv, f"run_dir={tmp_path / 'b'}")
    assert (
        f"the training shards are not those of {saved.checkpoint(10)} (other names, counts or weights): from step 10 on" in said
    )


def train_in_a_folder_of_its_own(root: str, *argv: str) -> int:
    """Each rank in a working folder of its own, as on nodes with disks of their own."""
    os.chdir(Path(root) / os.environ["RANK"])
    return flexiclip_main("train", *argv)


def test_ranks_that_see_other_shards_are_named(recipe: list[str], tmp_path: Path) -> None:
    for rank, count in enumerate((24, 24, 23)):
        (tmp_path / str(rank)).mkdir()
        write_shard(tmp_path / str(rank) / "train-0000.tar", [sample(n) for n in range(count)])
    argv = (*recipe, "data.train=train-*.tar", f"run_dir={tmp_path / 'run'}")
    assert run_ranks(3, tmp_path / "log", train_in_a_folder_of_its_own, str(tmp_path), *argv) == [2, 2, 2]
    assert "data.train: rank 2 (on " in (tmp_path / "log.0").read_text()
    assert not (tmp_path / "run").exists()
