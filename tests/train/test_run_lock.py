"""One run at a time in a folder, on any file system and host: claims that live, that are stale, and that compete."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from flexiclip.errors import RunError, UserError
from flexiclip.train.remote_store import open_store
from flexiclip.train.run_lock import FOLDER, RunLock
from flexiclip.train.stores import LocalStore, Store


@pytest.fixture(params=["folder", "memory://"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return LocalStore(tmp_path)
    return open_store(f"memory://{uuid4().hex}/run", tmp_path / "staging")


@pytest.fixture
def lock() -> Iterator[RunLock]:
    """One that renews every 50 ms, and takes another machine for dead after half a second."""
    with RunLock(beat_s=0.05, silent_s=0.5) as made:
        yield made


def claim(pid: int = 1, **given: Any) -> bytes:
    """What another process has written; by default one of another machine."""
    return json.dumps(
        {"state": "holds", "host": "node2", "pid": pid, "started": "1", "machine": "another", "beat": 1, **given}
    ).encode()


def quiet(line: str) -> None:
    raise AssertionError(f"nothing is to be waited for: {line}")


def test_a_place_that_is_held_is_refused_at_once_until_it_is_given_up(place: Store, lock: RunLock) -> None:
    with RunLock() as first:
        first.take(place, "run_dir", quiet)
        with pytest.raises(UserError, match=rf"^run_dir=.*another process trains there \(pid {os.getpid()} on "):
            lock.take(place, "run_dir", quiet)
        assert place.names(FOLDER) == [first.name]
    assert place.names(FOLDER) == []
    lock.take(place, "run_dir", quiet)
    assert place.names(FOLDER) == [lock.name]


def test_of_any_number_that_start_at_once_one_goes_on(place: Store) -> None:
    for _ in range(3):
        together = threading.Barrier(4)

        def start(lock: RunLock, together: threading.Barrier = together) -> bool:
            together.wait()
            try:
                lock.take(place, "run_dir", lambda line: None)
            except UserError:
                return False
            return True

        locks = [RunLock() for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(start, locks)) == 1
        for lock in locks:
            lock.__exit__()
        assert place.names(FOLDER) == []


def test_a_claim_of_a_dead_process_is_taken_over_at_once(place: Store, lock: RunLock) -> None:
    """Of one that is gone, of one whose number another process has now, and of a killed one that nobody has waited for."""
    with RunLock() as mine:
        mine.take(place, "run_dir", quiet)
        ours = json.loads(place.read(f"{FOLDER}/{mine.name}") or b"")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    started = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
    place.write(f"{FOLDER}/living", json.dumps({**ours, "pid": child.pid, "started": started}).encode())
    with pytest.raises(UserError, match=f"pid {child.pid} on"):
        lock.take(place, "run_dir", quiet)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie from here on
    place.write(f"{FOLDER}/reused", json.dumps({**ours, "started": "1"}).encode())
    place.write(f"{FOLDER}/gone", json.dumps({**ours, "pid": 2**22 + 1}).encode())
    began = time.monotonic()
    lock.take(place, "run_dir", quiet)
    assert time.monotonic() - began < 0.5 * lock.silent_s + 0.25
    assert place.names(FOLDER) == [lock.name]
    child.wait()


@pytest.mark.parametrize("content", [claim(), b"", b"[1]", b'{"pid": "x"'], ids=["another host", "empty", "list", "cut"])
def test_a_silent_claim_of_another_machine_is_waited_for_and_taken_over(place: Store, lock: RunLock, content: bytes) -> None:
    place.write(f"{FOLDER}/other", content)
    said: list[str] = []
    began = time.monotonic()
    lock.take(place, "run_dir", said.append)
    assert 0.5 < time.monotonic() - began < 5
    assert len(said) == 1
    assert "may be in use by pid" in said[0]
    assert place.names(FOLDER) == [lock.name]


def test_a_claim_of_another_machine_that_is_renewed_is_refused(place: Store, lock: RunLock) -> None:
    over = threading.Event()

    def renew() -> None:
        beat = 1
        while not over.wait(0.05):
            beat += 1
            place.write(f"{FOLDER}/other", claim(beat=beat))

    place.write(f"{FOLDER}/other", claim())
    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(UserError, match="another process trains there \\(pid 1 on node2\\)"):
            lock.take(place, "train.checkpoint_dir", lambda line: None)
    finally:
        over.set()
        thread.join()
    assert place.names(FOLDER) == ["other"]


def test_ranks_that_torchrun_has_restarted_wait_for_those_before_them(
    place: Store, lock: RunLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    before = RunLock()
    before.take(place, "run_dir", quiet)
    threading.Timer(0.3, before.__exit__).start()
    lock.take(place, "run_dir", lambda line: None)
    assert place.names(FOLDER) == [lock.name]


def test_a_holder_renews_and_leaves_when_it_was_taken_for_dead(place: Store, lock: RunLock) -> None:
    lock.take(place, "run_dir", quiet)
    first = place.read(f"{FOLDER}/{lock.name}")
    until(lambda: place.read(f"{FOLDER}/{lock.name}") not in (first, None))
    place.remove(f"{FOLDER}/{lock.name}")  # somebody tidies up: nothing is lost
    until(lambda: lock.name in place.names(FOLDER))
    lock.check()
    place.write(f"{FOLDER}/0", claim())
    place.remove(f"{FOLDER}/{lock.name}")
    until(lambda: lock._lost is not None)
    with pytest.raises(RunError, match=r"another process \(pid 1 on node2\) has taken .* over"):
        lock.check()
    assert place.names(FOLDER) == ["0"]


def until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_folder_that_was_moved_aside_is_claimed_anew(tmp_path: Path, lock: RunLock) -> None:
    run, old = LocalStore(tmp_path / "run"), LocalStore(tmp_path / "old")
    run.root.mkdir()
    lock.take(run, "run_dir", quiet)
    run.root.rename(old.root)
    run.root.mkdir()
    lock.forget(old)
    lock.take(run, "run_dir", quiet)
    assert run.names(FOLDER) == [lock.name]
    assert not (old.root / FOLDER).exists()
    lock.__exit__()
    assert not (run.root / FOLDER).exists()


def test_a_place_that_cannot_be_written_raises_its_own_error(tmp_path: Path, lock: RunLock) -> None:
    with pytest.raises(OSError, match="No such file"):
        lock.take(LocalStore(tmp_path / "absent"), "run_dir", quiet)
