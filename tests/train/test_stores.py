"""Both kinds of store keep the same promises: latest is whole, re-writing and removing leave nothing that looks complete."""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import uuid4

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from kit.stores import KilledError, put

from flexiclip.errors import UserError
from flexiclip.files import link_folder
from flexiclip.train.remote_store import RemoteStore, open_store
from flexiclip.train.stores import Store


@pytest.fixture(params=["folder", "file://", "memory://"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    places = {"folder": f"{tmp_path}/place", "file://": f"file://{tmp_path}/place", "memory://": f"memory://{uuid4().hex}/run"}
    return open_store(places[request.param], tmp_path / "staging")


def test_what_is_put_is_the_latest_and_comes_back(store: Store, tmp_path: Path) -> None:
    store.check_writable()
    assert store.latest() is None
    assert store.steps() == []
    put(store, 5, "five")
    put(store, 10, "ten")
    assert store.latest() == "step-10"
    assert sorted(store.steps()) == [5, 10]
    for name, content in (("step-5", "five"), ("step-10", "ten")):
        checkpoint = store.open(name, tmp_path / "fetched" / name)
        assert f"step-{checkpoint.step}" == name
        assert (checkpoint.model / "weights").read_text() == content
    with pytest.raises(UserError, match="step-7 is not a complete checkpoint"):
        store.open("step-7", tmp_path / "fetched" / "step-7")


def test_one_that_is_written_again_is_replaced_whole(store: Store, tmp_path: Path) -> None:
    put(store, 5, "five")
    put(store, 10, "a longer content of an earlier life")
    put(store, 10, "ten")
    assert store.latest() == "step-10"
    assert (store.open("step-10", tmp_path / "fetched").model / "weights").read_text() == "ten"


def test_put_of_what_is_gone_leaves_everything_as_it_was(store: Store, tmp_path: Path) -> None:
    put(store, 5, "five")
    put(store, 10, "ten")
    with pytest.raises(FileNotFoundError):
        store.put(tmp_path / "absent", "step-10")
    assert store.latest() == "step-10"
    assert sorted(store.steps()) == [5, 10]


WRITING = {"put", "copy_in", "move_in", "drop", "write", "_point_to", "link_folder", "replace_folder", "write_whole"}
"""The functions, of the stores and below them, that change something."""


class _Killed(BaseException):
    """In the place of a SIGKILL: it comes between two lines, and nothing of ours handles it."""


@contextmanager
def killed_at(line: int) -> Iterator[list[bool]]:
    """Raise at that line, counted from 1, of what WRITING runs in the block; the list says whether it came to that."""
    left, happened = [line], []

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if "flexiclip" not in frame.f_code.co_filename or frame.f_code.co_name not in WRITING:
            return None
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                happened.append(True)
                raise _Killed
        return trace

    sys.settrace(trace)
    try:
        yield happened
    except _Killed:
        pass
    finally:
        sys.settrace(None)


@pytest.mark.parametrize("kind", ["folder", "memory://"])
@pytest.mark.parametrize("others", [[20], [5]], ids=["later", "earlier"])
def test_latest_names_a_complete_one_wherever_a_put_is_killed(kind: str, others: list[int], tmp_path: Path) -> None:
    """Step 10 is written again, as by a run that went on from an earlier checkpoint; `latest` names it. Then the run goes on.

    A later one is of a life that was given up, and is not gone back to.
    """
    seen = set()
    for line in itertools.count(1):
        place = f"{tmp_path}/{line}" if kind == "folder" else f"memory://{uuid4().hex}/run"
        store = open_store(place, tmp_path / "staging")
        for step in others:
            put(store, step, str(step))
        put(store, 10, "old")
        with killed_at(line) as happened:
            put(store, 10, "new")

        store = open_store(place, tmp_path / "staging")
        name = store.latest()
        assert name is not None
        content = (store.open(name, tmp_path / "fetched" / f"{line}").model / "weights").read_text()
        assert content in {"old", "new", *(str(step) for step in others if step < 10)}, (line, name)
        seen.add(content)
        put(store, 30, "onward")
        assert store.latest() == "step-30"
        assert set(store.steps()) <= {10, 30, *others}
        if kind == "folder":
            assert not list((tmp_path / f"{line}").glob("*.new"))
        else:
            MemoryFileSystem.store.clear()  # which it searches as a whole
        if not happened:
            break
    assert {"old", "new"} <= seen
    assert line > 20


def test_drop_removes_a_checkpoint(store: Store) -> None:
    put(store, 5, "five")
    put(store, 10, "ten")
    store.drop("step-5")
    store.drop("step-5")
    assert store.steps() == [10]
    assert store.latest() == "step-10"


def test_dropping_that_is_cut_short_leaves_nothing_that_looks_complete(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed when the weights are gone and state.json may not be, or where there are objects, after the first one."""
    put(store, 5, "five")
    put(store, 10, "ten")
    remove = store.fs.rm if isinstance(store, RemoteStore) else shutil.rmtree

    def remove_some(path: Path | str, **options: Any) -> None:
        if isinstance(path, str):
            remove(path, **options)
        elif path.exists():
            remove(path / "model")
        else:
            return
        raise KilledError

    with monkeypatch.context() as patched:
        if isinstance(store, RemoteStore):
            patched.setattr(store.fs, "rm", remove_some)
        else:
            patched.setattr("flexiclip.train.stores.shutil.rmtree", remove_some)
        with pytest.raises(KilledError):
            store.drop("step-5")
    assert store.steps() == [10]
    with pytest.raises(UserError, match="step-5 is not a complete checkpoint"):
        store.state("step-5")
    put(store, 5, "five once more")
    assert sorted(store.steps()) == [5, 10]


def test_what_a_killed_writer_left_goes_with_the_next_checkpoint(tmp_path: Path) -> None:
    root = tmp_path / "place"
    store = open_store(str(root), tmp_path / "staging")
    put(store, 5, "five")
    (root / ".step-6.99999" / "model").mkdir(parents=True)
    (root / ".latest.99999").write_text("step-6")
    (tmp_path / ".model.99999").mkdir()
    put(store, 10, "ten")
    link_folder(root / "step-10" / "model", tmp_path / "model")
    assert sorted(path.name for path in root.iterdir()) == ["latest", "step-10", "step-5"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "staging") == ["model", "place"]
    assert (tmp_path / "model" / "weights").read_text() == "ten"
