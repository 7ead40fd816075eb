"""Reads that fail, stall or come back short: tried again, then substituted and named; the order of training is unharmed."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
import torch
from flaky_server import FlakyServer

from flexiclip.config import DataConfig
from flexiclip.data.dataset import open_sources
from flexiclip.data.index import read_index
from flexiclip.data.reading import Retries, read_range, retried, shard_stamp
from flexiclip.data.remote import bounded
from flexiclip.errors import UserError

ONCE, TWICE = Retries(1, 30), Retries(2, 30)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyServer]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with FlakyServer(tmp_path) as running:
        yield running


RECOVERING = [("503", "503"), ("close", "429"), ("short", "promise"), ("500", "close", "short")]


@pytest.mark.parametrize("faults", [("503", "close"), *(pytest.param(each, marks=pytest.mark.slow) for each in RECOVERING)])
def test_a_server_that_recovers_gives_the_same_batches(
    uneven: str, server: FlakyServer, loader_of: Any, faults: tuple[str, ...]
) -> None:
    """Every read of the index and of the samples fails so often before it succeeds; nothing is substituted."""
    server.faults = faults
    for local, remote in zip(loader_of(uneven), loader_of(f"{server.url}/{Path(uneven).name}"), strict=True):
        assert remote.samples == local.samples
        assert remote.captions == local.captions
        assert not remote.bad
        assert torch.equal(remote.images, local.images)
    assert min(server.requests.values()) == len(faults) + 1


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_server_that_hangs_and_recovers(uneven: str, server: FlakyServer, loader_of: Any, workers: int) -> None:
    """It accepts and never answers, then answers a byte at a time: each attempt ends by the clock."""
    remote = f"{server.url}/{Path(uneven).name}"
    sources = open_sources(DataConfig(train=remote, window_shards=2, read_timeout_s=1.5), 3)
    server.faults = ("hang", "trickle")
    given = {"steps": 1, "workers": workers, "sources": sources}
    (local,), (batch,) = loader_of(uneven, steps=1), loader_of(remote, **given)
    assert (batch.samples, batch.bad) == (local.samples, [])


PERSISTENT = {
    "404": ("no such file", 1),
    "403": ("403", 1),
    "whole": ("ignores byte ranges", 1),
    "shifted": ("ignores byte ranges", 1),
    "503": ("503.*2 attempts", 2),
    "close": ("2 attempts", 2),
    "short": ("short read.*2 attempts", 2),
    "loop": ("TooManyRedirects.*2 attempts", 20),  # aiohttp follows ten
    "hang": ("no answer, or not the whole of it, within 1 s.*2 attempts", 1),  # it may connect anew in between
}
SLOW = ("hang", "503", "403", "loop")


@pytest.mark.parametrize("fault", [pytest.param(f, marks=pytest.mark.slow) if f in SLOW else f for f in PERSISTENT])
def test_what_stays_broken_is_substituted_and_named(uneven: str, server: FlakyServer, loader_of: Any, fault: str) -> None:
    """One of four shards is lost after it was indexed: its nine samples are replaced, all others stand where they stood."""
    remote = f"{server.url}/{Path(uneven).name}"
    config = DataConfig(train=remote, window_shards=2, read_attempts=2, read_timeout_s=1.0 if fault == "hang" else 30.0)
    sources = open_sources(config, 3)
    server.requests.clear()
    server.always, server.only = fault, "train-0001"
    reason, requests = PERSISTENT[fault]
    (local,) = loader_of(uneven, steps=1, global_batch_size=23)
    (batch,) = loader_of(remote, steps=1, global_batch_size=23, sources=sources)
    lost = [name for name in local.samples if name.startswith("train-0001")]
    assert len(lost) == 9
    for expected, found in zip(local.samples, batch.samples, strict=True):
        assert found == expected if expected not in lost else not found.startswith("train-0001")
    assert {f"train-0001.tar/{bad['key']}" for bad in batch.bad} == set(lost)
    assert {bad["shard"] for bad in batch.bad} == {f"{server.url}/train-0001.tar"}
    for bad in batch.bad:
        assert re.match(f"cannot be read: .*{reason}", bad["reason"]), bad
    asked = {count for (path, _), count in server.requests.items() if "train-0001" in path}
    assert all(count % requests == 0 for count in asked), asked


def test_an_index_that_cannot_be_read_is_refused_in_one_line(uneven: str, server: FlakyServer) -> None:
    """Not left out like a damaged shard: another rank might reach it."""
    url = f"{server.url}/train-0003.tar"
    server.always = "503"
    with pytest.raises(UserError, match=r"train-0003\.tar: cannot be read: .*503.*\(2 attempts\)"):
        read_index(url, TWICE)
    server.always = "whole"
    with pytest.raises(UserError, match=r"cannot be read: .*ignores byte ranges.*data\.sequential=true"):
        read_index(url, TWICE)
    with pytest.raises(UserError, match=r"train-0009\.tar: cannot be reached"):
        open_sources(DataConfig(train=f"{server.url}/train-0009.tar"), 0)
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/x\.tar: cannot be reached"):
        open_sources(DataConfig(train="http://127.0.0.1:9/x.tar", read_attempts=1), 0)


def test_a_blocking_backend_is_left_behind_in_time(tmp_path: Path) -> None:
    """fsspec's local files stand for any backend without asyncio; opening a FIFO that nobody writes to never returns."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(b"0123456789")
    fs = fsspec.filesystem("file")
    assert bounded(fs, "cat_file", 30, str(tmp_path / "file"), start=2, end=5) == b"234"
    with pytest.raises(FileNotFoundError):
        bounded(fs, "cat_file", 30, str(tmp_path / "gone"))
    with pytest.raises(TimeoutError, match=r"within 0\.3 s"):
        bounded(fs, "cat_file", 0.3, str(tmp_path / "fifo"))


def test_a_local_read_that_fails_for_a_while() -> None:
    """/proc/self/mem answers EIO where nothing is mapped: real errors of a real file, until something is mapped there."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    place = libc.mmap(None, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE, anonymous, -1, 0)
    libc.munmap(place, mmap.PAGESIZE)
    with pytest.raises(OSError, match=r"Input/output error.*\(2 attempts\)"):
        read_range("/proc/self/mem", place, 4, TWICE)

    def mend() -> None:
        time.sleep(0.1)
        fixed = 0x10
        libc.mmap(place, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE, anonymous | fixed, -1, 0)
        ctypes.memmove(place, b"fine", 4)

    thread = threading.Thread(target=mend)
    thread.start()
    assert read_range("/proc/self/mem", place, 4, Retries(attempts=8)).strip(b"\0") in (b"fine", b"")
    thread.join()
    assert read_range("/proc/self/mem", place, 4, ONCE) == b"fine"
    libc.munmap(place, mmap.PAGESIZE)


def test_local_files_fail_at_once_where_waiting_helps_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"0123456789")
    patient = Retries(attempts=50)  # minutes, were they used
    began = time.monotonic()
    with pytest.raises(FileNotFoundError):
        read_range(str(tmp_path / "gone.tar"), 0, 1, patient)
    with pytest.raises(OSError, match="short read: 3 of 5 bytes at offset 7"):
        read_range(str(tmp_path / "x.tar"), 7, 5, patient)
    with pytest.raises(OSError, match="beyond the end of the file"):
        read_range(str(tmp_path / "x.tar"), 7, 2**40, patient)  # no memory is taken for it
    assert time.monotonic() - began < 30


class Tagged(BaseHTTPRequestHandler):
    """An object of ten bytes under whatever `tags` says of it."""

    tags: ClassVar[dict[str, str]] = {}

    def do_HEAD(self) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": "10", "Accept-Ranges": "bytes", **self.tags}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("tag", ["ETag", "Content-MD5", "Last-Modified"])
def test_shard_stamp_changes_with_the_entity_tag_alone(tag: str) -> None:
    times = {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"} if tag != "Last-Modified" else {}
    with ThreadingHTTPServer(("127.0.0.1", 0), Tagged) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.tar"
        stamps = []
        for value in ("one", "one", "two"):
            Tagged.tags = {**times, tag: value}
            stamps.append(shard_stamp(url))
        server.shutdown()
    assert stamps[0] == stamps[1] == "10-one"
    assert stamps[2] == "10-two"


def test_shard_stamp_of_a_file_changes_with_its_size_and_its_time(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"0123456789")
    os.utime(path, ns=(5, 7))
    stamps = [shard_stamp(str(path)), shard_stamp(f"file://{path}")]
    os.utime(path, ns=(6, 7))  # read meanwhile
    stamps.append(shard_stamp(str(path)))
    assert set(stamps) == {"10-7"}
    os.utime(path, ns=(6, 8))
    assert shard_stamp(str(path)) == "10-8"
    path.write_bytes(b"0123456789a")
    os.utime(path, ns=(6, 8))
    assert shard_stamp(str(path)) == "11-8"


class StatusError(Exception):
    """As aiohttp's: an answer of the server."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        *((StatusError(status), 1) for status in (400, 401, 403, 404, 410, 416, 451)),
        *((StatusError(status), 3) for status in (408, 425, 429, 500, 502, 503, 504)),
        *((error("gone"), 1) for error in (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)),
        *((error("busy"), 3) for error in (OSError, TimeoutError, ConnectionResetError, BlockingIOError, ValueError)),
    ],
    ids=lambda value: f"{type(value).__name__} {getattr(value, 'status', '')}" if isinstance(value, Exception) else str(value),
)
def test_retried_gives_up_at_once_where_waiting_helps_nothing(
    error: Exception, attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    tried = []

    def fail() -> None:
        tried.append(1)
        raise error

    with pytest.raises(OSError, match=r"status|gone|busy") as caught:
        retried(fail, "a", Retries(attempts=3))
    assert len(tried) == attempts
    assert str(caught.value).endswith("(3 attempts)") == (attempts == 3)


def test_retried_pauses_twice_as_long_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.2 s, 0.4 s, ... up to 30 s, each made shorter or longer by up to a half, evenly, by the name of the place."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)

    def fail() -> None:
        raise ConnectionError("down")

    found = []
    for place in range(300):
        pauses.clear()
        with pytest.raises(OSError, match=r"down \(11 attempts\)"):
            retried(fail, f"s3://a/{place}", Retries(attempts=11))
        found.append(list(pauses))
    shares = np.array(found) / [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30]
    assert shares.shape == (300, 10)
    assert shares.min() >= 0.5
    assert shares.max() < 1.5
    assert (np.abs(shares.mean(axis=0) - 1) < 0.06).all()
    assert (np.ptp(shares, axis=0) > 0.9).all()


def test_a_server_without_entity_tags_says_when_a_shard_was_replaced(tmp_path: Path) -> None:
    """Python's own: its answers have a length, which tar's blocks repeat, and the time of the last change."""
    shard = tmp_path / "a.tar"
    shard.write_bytes(bytes(10240))
    os.utime(shard, (10**9, 10**9))
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.tar"
        before = shard_stamp(url)
        assert shard_stamp(url) == before
        os.utime(shard, (10**9 + 60, 10**9 + 60))
        assert shard_stamp(url) != before
        server.shutdown()
