"""The thread that writes checkpoints: one at a time, a failure said and the run going on, the last one an error."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from flexiclip.config import load
from flexiclip.errors import RunError
from flexiclip.model_folder import LoadedModel, build_model, read_weights
from flexiclip.train.checkpoint import Facts, Snapshot, open_checkpoint
from flexiclip.train.checkpoint_writer import CheckpointWriter
from flexiclip.train.remote_store import open_store
from flexiclip.train.stores import LocalStore, Store


@pytest.fixture(scope="module")
def loaded(recipe: list[str]) -> LoadedModel:
    return build_model(load(recipe[0], recipe[1:]))


@pytest.fixture
def snapshot(loaded: LoadedModel) -> Callable[[int], Snapshot]:
    """Of a step, whose scale is the step."""

    def at(step: int) -> Snapshot:
        weights = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
        weights["logit_scale"] = torch.full_like(weights["logit_scale"], step)
        return Snapshot(loaded, weights, {"exp_avg/logit_scale": torch.full((1,), float(step))}, Facts(step))

    return at


class SlowStore(LocalStore):
    """Its puts wait until they may go on."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.go_on, self.writing, self.most = threading.Semaphore(0), 0, 0

    def put(self, aside: Path, name: str) -> Path:
        self.writing += 1
        self.most = max(self.most, self.writing)
        assert self.go_on.acquire(timeout=60)
        written = super().put(aside, name)
        self.writing -= 1
        return written


def test_writer_lets_the_run_go_on_and_never_writes_two_at_a_time(tmp_path: Path, snapshot: Callable[[int], Snapshot]) -> None:
    store = SlowStore(tmp_path / "checkpoints")
    said: list[str] = []
    writer = CheckpointWriter(store, tmp_path, (2, None), said.append, None)
    writer.write(snapshot(1))  # returns while the store waits
    assert store.latest() is None
    second = threading.Thread(target=writer.write, args=(snapshot(2),))
    second.start()
    second.join(0.2)
    assert second.is_alive(), "the second begins before the first is written"
    store.go_on.release()
    second.join(60)
    assert store.latest() == "step-1"
    store.go_on.release()
    writer.wait()
    assert store.latest() == "step-2"
    assert (store.most, said) == (1, [])
    writer.write_last(snapshot(2))  # has just been written: nothing is put, or it would wait
    assert float(read_weights(tmp_path / "model" / "model.safetensors")["logit_scale"]) == 2


class Refusing(MemoryFileSystem):
    """An object store whose uploads under some names fail, the file before state.json having arrived."""

    protocol = "refusing"
    refused: tuple[str, ...] = ()

    def put_file(self, lpath: str, rpath: str, *arguments: object, **options: object) -> None:
        if rpath.endswith("state.json") and any(f"/{name}/" in rpath for name in self.refused):
            raise OSError(28, "No space left on device")
        super().put_file(lpath, rpath, *arguments, **options)


class FullDisk(LocalStore):
    """A disk that is full when some names are put."""

    refused: tuple[str, ...] = ()

    def put(self, aside: Path, name: str) -> Path:
        if name in self.refused:
            raise OSError(28, "No space left on device")
        return super().put(aside, name)


@pytest.fixture(params=["folder", "objects"])
def failing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Store, type[Refusing] | type[FullDisk]]]:
    """A store that refuses steps 10 and 20."""
    import fsspec

    kind: type[Refusing] | type[FullDisk] = FullDisk if request.param == "folder" else Refusing
    kind.refused = ("step-10", "step-20")
    fsspec.register_implementation("refusing", Refusing, clobber=True)
    yield (FullDisk(tmp_path / "place") if kind is FullDisk else open_store(f"refusing://{tmp_path}", tmp_path / "aside")), kind
    kind.refused = ()


def left(store: Store, tmp_path: Path) -> list[str]:
    """Every file of the store, and what lies aside."""
    if isinstance(store, LocalStore):
        return sorted(path.relative_to(store.root).parts[0] for path in store.root.rglob("*") if path.is_file())
    aside = [str(path) for path in tmp_path.glob("aside*")]
    return sorted(path.removeprefix(f"{store.root}/").split("/")[0] for path in store.fs.find(store.root)) + aside  # type: ignore[attr-defined]


def test_writer_says_what_fails_and_removes_it_and_the_last_one_is_an_error(
    failing: tuple[Store, type[Refusing] | type[FullDisk]], tmp_path: Path, snapshot: Callable[[int], Snapshot]
) -> None:
    store, kind = failing
    said: list[str] = []
    writer = CheckpointWriter(store, tmp_path / "run", (1, None), said.append, None)
    (tmp_path / "run").mkdir()
    writer.write(snapshot(10))
    writer.wait()
    assert said == ["checkpoint step-10 could not be written: No space left on device: there is no earlier one"]
    assert left(store, tmp_path) == []
    writer.write(snapshot(15))
    writer.wait()
    writer.write(snapshot(20))
    writer.wait()
    assert said[1:] == ["checkpoint step-20 could not be written: No space left on device: step-15 stays the newest"]
    with pytest.raises(RunError, match=r"^checkpoint step-20 could not be written: .*: step-15 stays the newest$"):
        writer.write_last(snapshot(20))
    assert (store.latest(), store.steps()) == ("step-15", [15])
    assert set(left(store, tmp_path)) == {"latest", "step-15"}
    assert float(read_weights(tmp_path / "run" / "model" / "model.safetensors")["logit_scale"]) == 15
    kind.refused = ()
    writer.write_last(snapshot(20))
    assert (store.latest(), store.steps()) == ("step-20", [20])


def test_writer_keeps_a_complete_checkpoint_whose_replacement_fails(tmp_path: Path, snapshot: Callable[[int], Snapshot]) -> None:
    store = FullDisk(tmp_path / "place")
    (tmp_path / "run").mkdir()
    CheckpointWriter(store, tmp_path / "run", (2, None), print, None).write_last(snapshot(10))
    store.refused = ("step-10",)
    with pytest.raises(RunError, match="could not be written"):
        CheckpointWriter(store, tmp_path / "run", (2, None), print, "step-5").write_last(snapshot(10))
    assert float(open_checkpoint(store.root / "step-10").weights()["logit_scale"]) == 10
    assert [path.name for path in store.root.iterdir() if path.name.startswith(".")] == []


def test_writer_drops_what_it_need_not_keep_after_the_new_one_is_whole(
    tmp_path: Path, snapshot: Callable[[int], Snapshot]
) -> None:
    """Keep the last two, and the first of each four steps for good."""
    store = LocalStore(tmp_path / "place")
    writer = CheckpointWriter(store, tmp_path, (2, 4), print, None)
    kept = []
    for step in (1, 2, 4, 5, 6, 9):
        writer.write(snapshot(step))
        writer.wait()
        kept.append(sorted(store.steps()))
    assert kept == [[1], [1, 2], [2, 4], [4, 5], [4, 5, 6], [4, 6, 9]]
