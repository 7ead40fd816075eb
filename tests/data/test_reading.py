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
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from fsspec import AbstractFileSystem
from kit.flaky_server import FlakyServer

from flexiclip.config import DataConfig
from flexiclip.data.dataset import open_sources
from flexiclip.data.index import read_index
from flexiclip.data.reading import (
    Retries,
    prefetch,
    read_members,
    read_range,
    read_whole,
    reads_in_parallel,
    retried,
    shard_stamp,
)
from flexiclip.data.remote import FinalError, bounded
from flexiclip.data.tar_walk import Member
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

    def map_the_page() -> None:
        time.sleep(0.1)
        fixed = 0x10
        libc.mmap(place, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE, anonymous | fixed, -1, 0)
        ctypes.memmove(place, b"fine", 4)

    thread = threading.Thread(target=map_the_page)
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


def failing(_: int = 0) -> bytes:
    raise OSError("a hiccup")


def test_pauses_between_attempts_double_up_to_half_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 0.2 s, each times a jitter of 0.5 to 1.5 that depends on the place and the attempt alone."""
    pauses: dict[str, list[float]] = {}
    for place in ("a.tar:0", "a.tar:512", "a.tar:0 "):
        slept: list[float] = []
        monkeypatch.setattr(time, "sleep", slept.append)
        with pytest.raises(OSError, match=r"a hiccup \(11 attempts\)"):
            retried(failing, place.strip(), Retries(attempts=11))
        pauses[place] = slept
    expected = [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]
    jitters = {place: np.array(slept) / expected for place, slept in pauses.items()}
    for jitter in jitters.values():
        assert ((jitter >= 0.5) & (jitter < 1.5)).all()
    assert len({round(float(each), 6) for place in ("a.tar:0", "a.tar:512") for each in jitters[place]}) == 20, (
        "none is another's"
    )
    assert pauses["a.tar:0"] == pauses["a.tar:0 "]


def test_what_no_attempt_can_repair_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer(Exception):  # noqa: N818 (as aiohttp's carries the status)
        status = 0

    monkeypatch.setattr(time, "sleep", lambda _: None)
    for error, status, attempts in (
        *((PermissionError("no"), 0, 1), (IsADirectoryError("no"), 0, 1), (FinalError("no"), 0, 1), (OSError("no"), 0, 3)),
        *((Answer("no"), status, 1) for status in (400, 401, 403, 404, 416)),
        *((Answer("no"), status, 3) for status in (0, 408, 425, 429, 500, 502, 503)),
        (UserError("no"), 0, 1),
    ):
        calls = 0

        def action(error: Exception = error, status: int = status) -> bytes:
            nonlocal calls
            calls += 1
            if isinstance(error, Answer):
                error.status = status
            raise error

        with pytest.raises(UserError if isinstance(error, UserError) else OSError):
            retried(action, "x", Retries(attempts=3))
        assert calls == attempts, (error, status)


class Tagged(AbstractFileSystem):
    """An object store of one shard, which says of it what a test lets it say."""

    protocol = "tagged"
    cachable = False
    about: dict[str, Any] = {}  # noqa: RUF012

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, **self.about}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        return b"0123456789"[start:end]


@pytest.mark.parametrize("tag", ["ETag", "etag", "md5Hash", "Content-MD5", "LastModified", "Last-Modified", "updated", "mtime"])
def test_the_stamp_of_an_object_changes_with_its_size_and_its_tag(monkeypatch: pytest.MonkeyPatch, tag: str) -> None:
    """Object stores of several makers name their entity tag, or the time of the last change, in several ways."""
    fsspec.register_implementation("tagged", Tagged, clobber=True)
    stamps = []
    for about in ({"size": 10, tag: "a"}, {"size": 10, tag: "a"}, {"size": 10, tag: "b"}, {"size": 11, tag: "b"}):
        monkeypatch.setattr(Tagged, "about", about)
        stamps.append(shard_stamp("tagged://bucket/x.tar"))
    assert stamps[0] == stamps[1]
    assert len(set(stamps)) == 3


def test_the_stamp_of_a_file_changes_with_its_size_and_its_time(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    stamps = []
    for size, time_ns in ((512, 10**18), (512, 10**18), (512, 10**18 + 1_000_000), (1024, 10**18 + 1_000_000)):
        path.write_bytes(bytes(size))
        os.utime(path, ns=(0, time_ns))
        stamps.append(shard_stamp(str(path)))
    assert stamps[0] == stamps[1]
    assert len(set(stamps)) == 3


def test_read_whole_takes_no_more_than_it_was_told(tmp_path: Path) -> None:
    fsspec.register_implementation("tagged", Tagged, clobber=True)
    (tmp_path / "classes.txt").write_bytes(b"0123456789")
    for place in (str(tmp_path / "classes.txt"), "tagged://bucket/classes.txt"):
        assert read_whole(place, 10, ONCE) == b"0123456789"
        with pytest.raises(OSError, match="more than 9 bytes"):
            read_whole(place, 9, Retries(attempts=50))
    with pytest.raises(FileNotFoundError):
        read_whole(str(tmp_path / "gone"), 9)


def test_members_that_are_too_large_together_are_not_read() -> None:
    """Refused by their sizes alone: the shard is never opened."""
    members = [Member("jpg", 512, 2**27, 0), Member("txt", 2**30, 2**27 + 1, 0)]
    with pytest.raises(OSError, match="its members hold 268435457 bytes: too many to read"):
        read_members("/no/such.tar", members, Retries(1, 1))


def test_prefetch_asks_for_local_shards_that_fit_into_a_quarter_of_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / name for name in ("a.tar", "b.tar")]
    for path in paths:
        path.write_bytes(bytes(4096))
    asked: list[tuple[str, int, int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, *rest: asked.append((os.readlink(f"/proc/self/fd/{file}"), *rest)))
    urls = [*map(str, paths), str(tmp_path / "gone.tar"), "s3://bucket/c.tar"]
    prefetch(urls)
    assert asked == [(str(path), 0, 0, os.POSIX_FADV_WILLNEED) for path in paths]
    asked.clear()
    for pages, wanted in ((8, 2), (7, 0)):  # two pages are a quarter of eight
        monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": pages, "SC_PAGE_SIZE": 4096}.__getitem__)
        prefetch(urls)
        assert len(asked) == wanted
        asked.clear()


def test_only_storage_that_answers_in_parallel_is_read_so(tmp_path: Path) -> None:
    assert reads_in_parallel("http://127.0.0.1/x.tar")
    for url in (str(tmp_path / "x.tar"), f"file://{tmp_path}/x.tar", "memory://x.tar", "filecache::http://127.0.0.1/x.tar"):
        assert not reads_in_parallel(url), url


@pytest.mark.parametrize("cache", ["filecache", "simplecache", "blockcache"])
def test_a_cached_shard_is_fetched_once(tmp_path: Path, server: FlakyServer, cache: str) -> None:
    """What one read has fetched serves the others; a block holds the whole of this small shard."""
    content = bytes(range(256)) * 40
    (tmp_path / "x.tar").write_bytes(content)
    url = f"{cache}::{server.url}/x.tar"
    assert read_range(url, 10, 5, ONCE) == content[10:15]
    fetched = sum(server.requests.values())
    (tmp_path / "x.tar").unlink()
    for offset in (0, 256, 10235):
        assert read_range(url, offset, 5, ONCE) == content[offset : offset + 5]
    assert sum(server.requests.values()) == fetched
    with pytest.raises(OSError, match="short read: 2 of 5 bytes at offset 10238"):
        read_range(url, 10238, 5, ONCE)


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
