"""Naming shards and reading ranges of them: local, over HTTP, and in fsspec's memory.

Shell commands run only where a recipe allows them: everything that could smuggle one in is tried, with a mark that it would
leave.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from kit.shards import good_sample, write_samples

from flexiclip.data.reading import prefetch, read_range
from flexiclip.data.remote import expand_shards
from flexiclip.data.samples import open_samples
from flexiclip.errors import UserError


def test_expansion_is_sorted_and_unique(tmp_path: Path) -> None:
    for name in ("b-1.tar", "b-0.tar", "a[1].tar", "c.txt"):
        (tmp_path / name).touch()
    b0, b1, a = (str(tmp_path / name) for name in ("b-0.tar", "b-1.tar", "a[1].tar"))
    assert expand_shards(str(tmp_path / "b-{0..1}.tar")) == [b0, b1]
    assert expand_shards([str(tmp_path / "*.tar"), b1]) == [a, b0, b1]
    assert expand_shards(a) == [a]
    assert expand_shards(f"file://{b0}") == [b0]
    assert expand_shards("https://host/x-{00..01}.tar?v=1") == ["https://host/x-00.tar?v=1", "https://host/x-01.tar?v=1"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("t-{0..99999999999}.tar", r"its ranges name more than 1,000,000 shards"),
        ("t-{0..1000000}.tar", r"its ranges name more than 1,000,000 shards"),
        ("gone-{0..1}.tar", r"shard .*gone-0\.tar: no such file"),
        ("gone-*.tar", r"gone-\*\.tar: the pattern matches no file \(working folder .*\)$"),
        (
            "data/openmoji/train-*.tar",
            r"; `flexiclip data openmoji --output data/openmoji` builds them, or set FLEXICLIP_DATA to",
        ),
        (
            "data/noto/heldout-0000.tar",
            r"no such file; `flexiclip data noto --output data/noto` builds them, or set FLEXICLIP_DATA",
        ),
        (".", "a folder: name its shards"),
        ("memory://nowhere/*.tar", r"memory://nowhere/\*\.tar: the pattern matches nothing"),
        ("pipe:cat x.tar", "data.allow_shell: true"),
        ("nosuch://bucket/*.tar", "nosuch"),
        ([], "no shards given"),
    ],
)
def test_expand_shards_names_mistakes(spec: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        expand_shards(spec)


def test_a_shell_command_passes_when_allowed() -> None:
    assert expand_shards("pipe:cat {a,b}.tar", allow_shell=True) == ["pipe:cat {a,b}.tar"]


def test_ranges_are_exact_across_threads_and_forks(tmp_path: Path) -> None:
    content = os.urandom(200_000)
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    places = [(offset, 1 + offset % 977) for offset in range(0, 190_000, 1009)]
    prefetch([str(path)])
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda p: read_range(str(path), *p), places)) == [content[o : o + n] for o, n in places]
    with pytest.raises(OSError, match="short read: 100 of 200 bytes"):
        read_range(str(path), len(content) - 100, 200)
    with pytest.raises(FileNotFoundError):
        read_range(str(tmp_path / "gone.tar"), 0, 1)


class RangeHandler(BaseHTTPRequestHandler):
    """Serves one folder; answers byte ranges, or ignores them when the path starts with /whole/."""

    protocol_version = "HTTP/1.1"
    folder: Path

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.folder / self.path.rpartition("/")[2]
        if not path.exists():
            self.send_error(404)
            return
        content, status = path.read_bytes(), 200
        total = len(content)
        wanted = self.headers.get("Range")
        self.protocol_version = "HTTP/1.1"
        start = end = 0
        if wanted and not self.path.startswith("/whole/"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or total), total - 1)
            content, status = content[start : end + 1], 206
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end}/{total}")
        if not self.path.startswith("/whole/"):
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def http(tmp_path: Path) -> Iterator[str]:
    handler = type("Handler", (RangeHandler,), {"folder": tmp_path})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.05), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("workers", [0, 2])
def test_http_shards_train_as_local_ones(uneven: str, http: str, loader_of: Any, tmp_path: Path, workers: int) -> None:
    remote = f"{http}/{Path(uneven).name}"
    cache = str(tmp_path / "cache")
    for a, b in zip(loader_of(uneven), loader_of(remote, index_cache=cache, workers=workers), strict=True):
        assert a.samples == b.samples
        assert a.captions == b.captions
        assert torch.equal(a.images, b.images)
    assert len(list((tmp_path / "cache").glob("*-train-000?.tar.index"))) == 4


def test_a_server_without_ranges_is_named(uneven: str, http: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="ignores byte ranges"):
        read_range(f"{http}/whole/train-0003.tar", 512, 100)
    with pytest.raises(UserError, match=r"train-0009\.tar: cannot be reached"):
        open_samples([f"{http}/train-0009.tar"], ("jpg",), ("txt",), str(tmp_path / "cache"))


def test_shards_in_the_memory_of_fsspec_are_read_as_local_ones(uneven: str, loader_of: Any, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in expand_shards(uneven):
        memory.pipe_file(f"/set/{Path(path).name}", Path(path).read_bytes())
    for spec in ("memory://set/*.tar", "filecache::memory://set/*.tar"):
        assert len(expand_shards(spec)) == 4
        for a, b in zip(loader_of(uneven), loader_of(spec, index_cache=str(tmp_path / "cache")), strict=True):
            assert a.samples == b.samples
            assert not b.bad
            assert torch.equal(a.images, b.images)


COMMAND = "touch pwned; cat good.tar"
SMUGGLED = [
    f"pipe:{COMMAND}",
    f" pipe:{COMMAND}",
    f"PIPE:{COMMAND}",
    f"file://pipe:{COMMAND}",
    f"{{pipe:{COMMAND},good.tar}}",
    "{pipe:touch pwned; curl http://127.0.0.1:9/x,good.tar}",
    f"good.tar::pipe:{COMMAND}",
    f"filecache::pipe:{COMMAND}",
    f"filecache::pipe:{COMMAND}; echo ://",
    "pipe:touch pwned; echo ://::memory://set/good.tar",
    "reference::memory://set/evil.json",
    "zip://good.tar::memory://set/good.zip",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a good shard in it."""
    monkeypatch.chdir(tmp_path)
    write_samples(tmp_path / "good.tar", [good_sample(n) for n in range(4)])
    return tmp_path


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("spec", SMUGGLED)
def test_nothing_smuggles_a_command(folder: Path, loader_of: Any, spec: str, sequential: bool) -> None:
    for train in (spec, ("good.tar", spec)):
        with pytest.raises(UserError) as caught:
            list(loader_of(train, sequential=sequential, read_attempts=1))
        assert "\n" not in str(caught.value)
    assert not (folder / "pwned").exists()


@pytest.mark.parametrize("allow_shell", [False, True])
def test_the_name_of_a_file_is_no_command(folder: Path, loader_of: Any, allow_shell: bool) -> None:
    """A glob that runs in the working folder yields bare names; one of them looks like a command."""
    os.rename("good.tar", "pipe:touch pwned;.tar")
    for train in ("*.tar", "file://pipe:touch pwned;.tar"):
        (batch,) = loader_of(train, sequential=True, allow_shell=allow_shell, steps=1)
        assert set(batch.samples) <= {f"pipe:touch pwned;.tar/s{n:04d}" for n in range(4)}
        assert not batch.bad
    assert not (folder / "pwned").exists()


def test_the_name_of_an_object_is_no_chain(folder: Path) -> None:
    """fsspec would read `memory://trap/a::...` through whatever stands before the colons."""
    fsspec.filesystem("memory").pipe_file("/trap/reference::memory:x.tar", b"")
    with pytest.raises(UserError, match="may come before ::"):
        expand_shards("memory://trap/*.tar")


def test_a_command_runs_where_it_is_allowed(folder: Path, loader_of: Any) -> None:
    (batch,) = loader_of(f"pipe:{COMMAND}", sequential=True, allow_shell=True, steps=1)
    assert {name.split("/")[-1] for name in batch.samples} <= {f"s{n:04d}" for n in range(4)}
    assert (folder / "pwned").exists()
    with pytest.raises(UserError, match=r"cannot seek: set data\.sequential=true"):
        list(loader_of(f"pipe:{COMMAND}", allow_shell=True))
