"""A store at a URL: what it reads and writes, what a cut upload leaves, and that a store that never answers is one line."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from kit.stores import KilledError, put

from flexiclip.errors import UserError
from flexiclip.train import remote_store
from flexiclip.train.checkpoint import STATE
from flexiclip.train.remote_store import RemoteStore, open_store
from flexiclip.train.stores import LocalStore


@pytest.fixture
def remote(tmp_path: Path) -> RemoteStore:
    store = open_store(f"memory://{uuid4().hex}/run/", tmp_path / "staging")
    assert isinstance(store, RemoteStore)
    return store


def test_open_store_is_a_folder_or_whatever_fsspec_reaches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for where, root in (("~/run", tmp_path / "run"), (f"file://{tmp_path}/run", tmp_path / "run"), ("runs/a", Path("runs/a"))):
        store = open_store(where, tmp_path / "staging")
        assert isinstance(store, LocalStore)
        assert store.root == root
    store = open_store("memory://bucket/run/", tmp_path / "staging")
    assert isinstance(store, RemoteStore)
    assert str(store) == "memory://bucket/run"
    with pytest.raises(UserError, match=r"^train\.checkpoint_dir=nonsense://bucket/run: Protocol not known: nonsense$"):
        open_store("nonsense://bucket/run", tmp_path / "staging")


def test_remote_names_read_write_and_remove_are_those_of_the_objects(remote: RemoteStore) -> None:
    """Every object is also there for another program that looks at the same place."""
    assert remote.names() == []
    assert remote.read("latest") is None
    remote.remove("latest")
    remote.write("latest", b"step-5\n")
    remote.write("step-5/state.json", b"{}")
    assert sorted(remote.names()) == ["latest", "step-5"]
    assert remote.names("step-5") == ["state.json"]
    assert remote.read("latest") == b"step-5\n"
    place = str(remote).removeprefix("memory:/")
    assert MemoryFileSystem().cat_file(f"{place}/latest") == b"step-5\n"
    remote.remove("latest")
    assert remote.names() == ["step-5"]


def test_remote_open_does_not_fetch_what_is_whole_again(remote: RemoteStore, tmp_path: Path) -> None:
    put(remote, 5, "five")
    fetched = tmp_path / "fetched"
    assert remote.open("step-5", fetched).step == 5
    remote.drop("step-5")
    assert (remote.open("step-5", fetched).model / "weights").read_text() == "five"
    (fetched / STATE).unlink()
    with pytest.raises(UserError, match=rf"^{remote}/step-5 is not a complete checkpoint"):
        remote.open("step-5", fetched)


def test_remote_open_of_a_lost_file_leaves_nothing_that_looks_whole(remote: RemoteStore, tmp_path: Path) -> None:
    put(remote, 5, "five")
    remote.remove("step-5/model/weights")
    with pytest.raises(UserError, match=rf"^{remote}/step-5 is not a complete checkpoint"):
        remote.open("step-5", tmp_path / "fetched")
    assert not (tmp_path / "fetched" / STATE).exists()


def test_remote_aside_forgets_what_an_earlier_writer_left(remote: RemoteStore) -> None:
    remote.staging.mkdir()
    (remote.staging / "half").write_text("of a checkpoint")
    assert remote.aside("step-5") == remote.staging
    assert not remote.staging.exists()


def test_uploading_that_is_cut_short_at_any_file_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """state.json goes up last, and `latest` after it: whatever has arrived by then, the one before is the newest."""
    store = open_store(f"memory://{uuid4().hex}/run", tmp_path / "staging")
    assert isinstance(store, RemoteStore)
    put(store, 5, "five")
    room, arrive = 0, store.fs.put_file

    def put_some(*arguments: object) -> None:
        nonlocal room
        if not room:
            raise KilledError
        room -= 1
        arrive(*arguments)

    monkeypatch.setattr(store.fs, "put_file", put_some)
    for files in (0, 1):  # of two
        room = files
        with pytest.raises(KilledError):
            put(store, 10, "ten")
        assert (store.latest(), store.steps()) == ("step-5", [5])
    room = 2
    put(store, 10, "ten")
    assert (store.latest(), sorted(store.steps())) == ("step-10", [5, 10])


class SilentFileSystem(AbstractFileSystem):
    """A store that accepts a question and never answers."""

    protocol = "silent"

    def cat_file(self, *_: object, **__: object) -> bytes:
        threading.Event().wait(60)
        return b""

    pipe_file = cat_file


def test_a_store_that_never_answers_is_one_line_in_bounded_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert remote_store.ANSWER_S <= 60, "a minute"
    monkeypatch.setattr(remote_store, "ANSWER_S", 0.6)
    fsspec.register_implementation("silent", SilentFileSystem, clobber=True)
    store = open_store("silent://bucket/run", tmp_path)
    began = time.monotonic()
    for question in (store.latest, store.check_writable, lambda: store.state("step-5")):
        with pytest.raises(
            UserError,
            match=r"^checkpoints at silent://bucket/run cannot be reached: no answer, or not the whole of it, within 0\.6 s$",
        ):
            question()
    assert time.monotonic() - began < 30
