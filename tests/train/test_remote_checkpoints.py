"""Checkpoints in an object store, against a server that speaks S3's API: interrupted, unreachable, gone on from elsewhere."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.alike import ENGINES
from kit.launch import ENVIRONMENT, Command, Trained, flexiclip_main, free_port, run_ranks
from kit.s3 import BUCKET, Road, S3Server, credentials

PLACE = f"train.checkpoint_dir=s3://{BUCKET}/run"
KEEP = ("train.save_every=5", "train.keep_last=1", "train.keep_every=10")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3") / "log")
    yield server
    server.close()


def train_with(environment: dict[str, str], *argv: str) -> int:
    """The command line under an environment of its own."""
    os.environ.update(environment)
    return flexiclip_main("train", *argv)


def train(port: int, world: int, recipe: list[str], log: Path, *argv: str) -> tuple[list[int], str]:
    """Exit codes, and what the main rank said."""
    codes = run_ranks(world, log, train_with, credentials(port), *recipe, *argv)
    return codes, Path(f"{log}.0").read_text()


def assert_goes_on_like(run: Trained, reference: Trained, start: int) -> None:
    assert run.samples == reference.samples[start:]
    assert abs(run.column("loss") - reference.column("loss")[start:]).max() <= 1e-4
    for name, tensor in reference.weights().items():
        assert (run.weights()[name] - tensor).abs().max() < 1e-5, name


@pytest.fixture(scope="module")
def saved(server: S3Server, recipe: list[str], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Two ranks under ZeRO-2 that keep step 10 for good and 20 as the last, with a tokenizer trained for the run."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    argv = (*own_tokenizer(recipe), f"run_dir={folder}", PLACE, *KEEP, *ENGINES["zero2"])
    codes, said = train(server.port, 2, list(argv), folder.with_name("log"))
    assert codes == [0, 0], said
    return Trained(folder)


def own_tokenizer(recipe: list[str]) -> list[str]:
    return [key for key in recipe if not key.startswith("tokenizer.path")]


def test_saved_there_and_gone_on_from_elsewhere(server: S3Server, recipe: list[str], saved: Trained, tmp_path: Path) -> None:
    """Three ranks of plain torch go on from the newest in a run folder that is new, as on other hosts."""
    assert server.names("run") == {"latest", "step-10", "step-20"}
    assert server.text("run/latest") == "step-20\n"
    sizes = json.loads(server.text("run/step-10/state.json") or "")["files"]
    assert sizes == {
        path.removeprefix(f"{BUCKET}/run/step-10/"): info["size"]
        for path, info in server.fs.find(f"{BUCKET}/run/step-10", detail=True).items()
        if not path.endswith("state.json")
    }
    assert {path.name for path in saved.folder.iterdir()} & {"checkpoints", ".saving", ".fetched"} == set()

    server.fs.pipe_file(f"{BUCKET}/run/latest", b"step-10\n")  # as it was when step 10 had just been written
    folder = tmp_path / "run"
    argv = (f"run_dir={folder}", PLACE, *KEEP, *ENGINES["torch"])
    codes, said = train(server.port, 3, own_tokenizer(recipe), tmp_path / "log", *argv)
    assert codes == [0, 0, 0], said
    assert f"going on from s3://{BUCKET}/run/step-10\n" in said
    assert "training a sentencepiece tokenizer" not in said
    assert_goes_on_like(Trained(folder), saved, 10)
    assert not (folder / ".fetched").exists()


@pytest.mark.slow
def test_one_of_them_by_its_url(server: S3Server, recipe: list[str], saved: Trained, tmp_path: Path) -> None:
    own, resume = own_tokenizer(recipe), f"train.resume=s3://{BUCKET}/run/step-10"
    codes, said = train(server.port, 1, own, tmp_path / "a", f"run_dir={tmp_path / 'a-run'}", resume)
    assert codes == [0], said
    assert_goes_on_like(Trained(tmp_path / "a-run"), saved, 10)

    codes, said = train(server.port, 1, own, tmp_path / "b", f"run_dir={tmp_path / 'b-run'}", PLACE, "seed=1")
    assert codes == [2]
    assert f"s3://{BUCKET}/run holds a run with seed=0, not 1" in said

    server.fs.pipe_file(f"{BUCKET}/run/step-10/optimizer.safetensors", b"cut")
    codes, said = train(server.port, 2, own, tmp_path / "c", f"run_dir={tmp_path / 'c-run'}", resume)
    assert codes == [2, 2]
    assert "step-10 is not a complete checkpoint (optimizer.safetensors has 3 of " in said


def test_killed_in_mid_upload_the_one_before_stays_the_latest(
    server: S3Server, recipe: list[str], reference: Trained, tmp_path: Path
) -> None:
    """The road to the server holds the request for the last of the checkpoint's files; all others have arrived."""
    road = Road(server.port, b"step-10/state.json", "hold")
    argv = (f"run_dir={tmp_path / 'run'}", f"train.checkpoint_dir=s3://{BUCKET}/killed", "train.save_every=5")
    with Command() as command:
        run = [sys.executable, "-m", "flexiclip", "train", *recipe, *argv]
        command.start(run, str(tmp_path / "log"), {**ENVIRONMENT, **credentials(road.port)})
        command.wait_for(road.reached.is_set)
        command.kill()
    road.close()
    assert server.text("killed/latest") == "step-5\n"
    assert server.names("killed/step-10") == {"model", "optimizer.safetensors"}
    assert server.text("killed/step-10/state.json") is None

    codes, said = train(server.port, 2, recipe, tmp_path / "again", *argv)
    assert codes == [0, 0], said
    assert f"going on from s3://{BUCKET}/killed/step-5\n" in said
    assert Trained(tmp_path / "run").samples == reference.samples
    assert server.names("killed") == {"latest", "step-15", "step-20"}


def refused(recipe: list[str], tmp_path: Path, port: int, url: str) -> str:
    """What a start says that cannot use a place for its checkpoints."""
    codes, said = train(port, 1, recipe, tmp_path / "log", f"run_dir={tmp_path / 'run'}", f"train.checkpoint_dir={url}")
    assert codes == [2], said
    assert "Traceback" not in said
    return said


def test_a_store_that_cannot_be_used_is_one_line_at_the_start(server: S3Server, recipe: list[str], tmp_path: Path) -> None:
    said = refused(recipe, tmp_path, server.port, "s3://no-such-bucket/run")
    assert "checkpoints at s3://no-such-bucket/run cannot be reached: The specified bucket does not exist" in said
    said = refused(recipe, tmp_path, server.port, "nonsense://bucket/run")
    assert "train.checkpoint_dir=nonsense://bucket/run: Protocol not known: nonsense" in said


@pytest.mark.slow
def test_a_store_out_of_reach_is_one_line_within_a_minute(recipe: list[str], tmp_path: Path) -> None:
    """Nobody listens (s3fs tries for a quarter of a minute), or somebody listens and never answers."""
    url = f"s3://{BUCKET}/run"
    assert f"checkpoints at {url} cannot be reached: EndpointConnectionError" in refused(recipe, tmp_path, free_port(), url)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        said = refused(recipe, tmp_path, int(silent.getsockname()[1]), url)
    assert f"checkpoints at {url} cannot be reached: no answer, or not the whole of it, within 60 s" in said


@pytest.mark.slow
def test_unreachable_for_a_while_is_said_and_the_run_goes_on(
    server: S3Server, recipe: list[str], reference: Trained, tmp_path: Path
) -> None:
    """Every request for a file of step 10 is cut off; the checkpoints after it go through."""
    road = Road(server.port, b"step-10/", "close")
    argv = (f"run_dir={tmp_path / 'run'}", f"train.checkpoint_dir=s3://{BUCKET}/rough", "train.save_every=10")
    codes, said = train(road.port, 1, recipe, tmp_path / "log", *argv)
    assert codes == [0], said
    assert "checkpoint step-10 could not be written: " in said
    assert ": there is no earlier one\n" in said
    assert "Traceback" not in said
    assert Trained(tmp_path / "run").samples == reference.samples
    assert server.names("rough") == {"latest", "step-20"}

    road.blocked = b"step-20/"
    codes, said = train(road.port, 1, recipe, tmp_path / "last", f"run_dir={tmp_path / 'other'}", argv[1] + "2", argv[2])
    assert codes == [1], said
    assert said.splitlines()[-1].startswith("flexiclip: checkpoint step-20 could not be written: ")
    assert said.splitlines()[-1].endswith(": step-10 stays the newest")
    road.close()
