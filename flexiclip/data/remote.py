"""Finds shards by name, and reads remote ones through fsspec with a time limit for each call.

A shard is a tar file, given by a path or by any URL that fsspec supports (s3://, gs://, https://, memory://). A URL may
have a prefix for one of fsspec's caches: `filecache::s3://...` keeps a local copy of what it reads. A shell command
(`pipe:COMMAND`) is accepted only if it is a full entry of the list in a recipe that allows it, and never as a result of
a brace range, a glob or the listing of a bucket.

fsspec itself would wait forever for a server that accepts a connection and does not answer, and would read everything
that a server sends. Only caches that fetch whole files have no time limit here.
"""

from __future__ import annotations

import asyncio
import glob
import os
import re
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeVar

from braceexpand import braceexpand
from fsspec.asyn import sync
from fsspec.core import url_to_fs
from fsspec.implementations.cached import CachingFileSystem, WholeFileCacheFileSystem

from flexiclip.errors import UserError
from flexiclip.files import too_late, within
from flexiclip.libraries import not_installed

if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")

_PACKAGES = {
    "http": ("aiohttp", "flexiclip[http]"),
    "https": ("aiohttp", "flexiclip[http]"),
    "s3": ("s3fs", "flexiclip[s3]"),
    "gs": ("gcsfs", "gcsfs"),
    "gcs": ("gcsfs", "gcsfs"),
    "abfs": ("adlfs", "adlfs"),
    "az": ("adlfs", "adlfs"),
}
"""Maps a protocol to the package that reads it, and to what pip installs for it."""


class _FileSystem(Protocol):
    """The part of fsspec's file systems that is used here. Only HTTP has `kwargs`, `encode_url` and `set_session`."""

    async_impl: bool
    protocol: str | tuple[str, ...]
    loop: asyncio.AbstractEventLoop
    kwargs: dict[str, Any]

    def open(self, path: str, mode: str) -> IO[bytes]: ...
    def glob(self, path: str) -> list[str]: ...
    def unstrip_protocol(self, name: str) -> str: ...
    def clear_instance_cache(self) -> None: ...
    def encode_url(self, url: str) -> str: ...
    async def set_session(self) -> aiohttp.ClientSession: ...


class FinalError(OSError):
    """A failure that would occur again in every further attempt."""


def filesystem(url: str) -> tuple[_FileSystem, str]:
    """Return fsspec's file system and the path inside it. Raises UserError for a protocol that cannot be used.

    fsspec caches file systems per process and thread, so they are safe after a fork.
    """
    try:
        fs, path = url_to_fs(url)
    except ImportError as error:
        protocol = url.rpartition("::")[2].partition("://")[0]
        if protocol in _PACKAGES:
            raise not_installed(*_PACKAGES[protocol], f"shard {url}") from None
        raise UserError(f"shard {url}: {error}") from None
    except Exception as error:  # an unknown protocol, a missing package, or missing options
        raise UserError(f"shard {url}: {error}") from None
    return fs, path


def read_remote(url: str, offset: int, size: int, timeout_s: float) -> bytes:
    """Read `size` bytes from `offset` in one attempt. Raises OSError and the errors of fsspec's backend."""
    data = _read(url, offset, size, timeout_s)
    if len(data) < size:
        raise OSError(f"short read: {len(data)} of {size} bytes at offset {offset}")
    if len(data) > size:
        raise FinalError(f"{url}: more bytes than asked for: {len(data)}, not {size}")
    return data


def read_remote_whole(url: str, most: int, timeout_s: float) -> bytes:
    """Read a small remote file in one attempt.

    Raises OSError for a file of more than `most` bytes, and the errors of fsspec's backend.
    """
    data = _read(url, None, most + 1, timeout_s)
    if len(data) > most:
        raise FinalError(f"{url}: more than {most} bytes")
    return data


def _read(url: str, offset: int | None, size: int, timeout_s: float) -> bytes:
    """Read `size` bytes, or fewer at the end of the file. `offset`: None reads from the start, if possible without a range."""
    fs, path = filesystem(url)
    start = offset or 0
    if offset is not None and isinstance(fs, CachingFileSystem):  # its `cat_file` would fetch the file again for each range

        def read() -> bytes:
            with fs.open(path, "rb") as file:
                file.seek(start)
                return file.read(size)

        return _in_thread(fs, read, timeout_s)
    if "http" in fs.protocol:
        return _on_loop(fs, partial(_http_body, fs, path, offset, size), timeout_s)
    return bounded(fs, "cat_file", timeout_s, path, start=start, end=start + size)


async def _http_body(fs: _FileSystem, url: str, offset: int | None, size: int) -> bytes:
    """Read a file with fsspec's HTTP session, from `offset` on if it is not None, and at most one piece beyond `size` bytes.

    fsspec's own request would read the whole file, also if the server ignores ranges.
    """
    session, options = await fs.set_session(), dict(fs.kwargs)
    if offset is not None:
        options["headers"] = {**options.get("headers", {}), "Range": f"bytes={offset}-{offset + size - 1}"}
    async with session.get(fs.encode_url(url), **options) as response:
        if response.status == 404:
            raise FileNotFoundError(f"no such file: {url}")
        response.raise_for_status()
        found = response.headers.get("Content-Range", "") if response.status == 206 else ""
        if offset is not None and not found.startswith(f"bytes {offset}-"):
            raise FinalError(
                f"{url}: the server ignores byte ranges, so samples cannot be read one by one: set data.sequential=true"
            )
        data = bytearray()
        async for chunk in response.content.iter_any():
            data += chunk
            if len(data) > size:
                break
        return bytes(data)


def bounded(fs: _FileSystem, method: str, timeout_s: float, *arguments: object, **options: object) -> Any:
    """Call fs.method(*arguments) with a limit of timeout_s seconds. Raises TimeoutError and the errors of the method."""
    if fs.async_impl:
        return _on_loop(fs, partial(getattr(fs, f"_{method}"), *arguments, **options), timeout_s)
    return _in_thread(fs, partial(getattr(fs, method), *arguments, **options), timeout_s)


def _on_loop(fs: _FileSystem, coroutine: Callable[[], Coroutine[None, None, T]], timeout_s: float) -> T:
    """Run a coroutine on fsspec's event loop. When its time is over, it is canceled and its connection is closed."""
    try:
        return sync(fs.loop, coroutine, timeout=timeout_s)
    except asyncio.TimeoutError:
        raise too_late(timeout_s) from None


def _in_thread(fs: _FileSystem, call: Callable[[], T], timeout_s: float) -> T:
    """Make a blocking call in a thread, which is abandoned when its time is over. Caches of whole files have no limit."""
    if isinstance(fs, WholeFileCacheFileSystem):
        return call()
    try:
        return within(timeout_s, call)
    except TimeoutError:
        fs.clear_instance_cache()  # its connection may still be in use, so the next attempt opens another one
        raise


PIPE = "pipe:"
SHELL = "shard {!r} would run a shell command: the recipe file must allow it with data.allow_shell: true"
"""The error message for a shell command that is not allowed."""

_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")
_MOST = 1_000_000  # shards of one pattern, so that a mistyped number does not fill the memory with names
_BUILT = ("openmoji", "noto", "fluent")  # the data sets that `flexiclip data NAME` builds
_CACHES = ("filecache", "simplecache", "blockcache")  # other parts of a chain could open archives or run templates


def is_remote(url: str) -> bool:
    """Whether the shard is read through fsspec and is not a local file."""
    return "://" in url and not url.startswith("file://")


def local_path(url: str) -> str:
    """Return the path of a local shard, without `file://`."""
    return url.removeprefix("file://")


def expand_shards(spec: str | Sequence[str], *, allow_shell: bool = False) -> list[str]:
    """Return every shard that the brace ranges, globs, paths and URLs name, sorted and without duplicates.

    `spec`: `train-{0000..0015}.tar`, `data/*.tar`, `s3://bucket/train-*.tar`, or a list of such patterns.
    `allow_shell`: accept an entry `pipe:COMMAND`, which runs in a shell, and return it unchanged. Raises UserError for
    a local shard that does not exist, a glob that matches nothing, and a `pipe:` that is not allowed.
    """
    patterns = [spec] if isinstance(spec, str) else list(spec)
    if not patterns:
        raise UserError("no shards given: name at least one, for example 'data.train=data/train-{0000..0003}.tar'")
    return sorted({url for pattern in patterns for url in _expand(pattern, allow_shell)})


def _expand(pattern: str, allow_shell: bool) -> list[str]:
    if pattern.startswith(PIPE):
        if not allow_shell:
            raise UserError(SHELL.format(pattern))
        return [pattern]
    try:
        longest = max((abs(int(last) - int(first)) for first, last in _RANGE.findall(pattern)), default=0)
        urls = list(islice(braceexpand(pattern), _MOST + 1)) if longest < _MOST else []
    except ValueError as error:  # braceexpand's UnbalancedBracesError is one of them
        raise UserError(f"shards {pattern!r}: {error}") from None
    if longest >= _MOST or len(urls) > _MOST:
        raise UserError(f"shards {pattern!r}: its ranges name more than {_MOST:,} shards")
    return [shard for url in urls for shard in (_expand_remote(url) if is_remote(url) else _expand_local(local_path(url)))]


def _expand_local(path: str) -> list[str]:
    path = os.path.expanduser(path)
    if os.path.isfile(path):  # checked first, so that a bracket in a file's name is not a pattern
        return [_plain(path)]
    if not glob.has_magic(path):
        kind = "a folder: name its shards, for example DIR/*.tar" if os.path.isdir(path) else "no such file"
        raise UserError(f"shard {path}: {kind}{_how_to_build(path)}")
    found = glob.glob(path, recursive=True)
    if not found:
        raise UserError(f"shards {path}: the pattern matches no file (working folder {os.getcwd()}){_how_to_build(path)}")
    return [_plain(shard) for shard in found]


def _how_to_build(path: str) -> str:
    """Return how to get shards that one of our commands builds and that are missing, or "" for other shards."""
    folder = os.path.dirname(path)
    name = os.path.basename(folder)
    if name not in _BUILT or os.path.isdir(folder):
        return ""
    return f"; `flexiclip data {name} --output {folder}` builds them, or set FLEXICLIP_DATA to the folder that holds {name}/"


def _plain(path: str) -> str:
    """Return the path in a form that cannot be mistaken for a `pipe:` command."""
    return os.path.join(os.curdir, path) if path.startswith(PIPE) else path


def _expand_remote(url: str) -> list[str]:
    _check_chain(url)
    # `?` is a wildcard in a path, but begins the query of a web address.
    if not any(mark in url for mark in ("*[" if url.startswith("http") else "*?[")):
        return [url]
    chain, separator, target = url.rpartition("::")  # for filecache::s3://..., list the target and read through the cache
    fs, path = filesystem(target)
    found = [chain + separator + fs.unstrip_protocol(p) for p in fs.glob(path)]
    if not found:
        raise UserError(f"shards {url}: the pattern matches nothing")
    for shard in found:
        _check_chain(shard)
    return found


def _check_chain(url: str) -> None:
    """Raise UserError unless everything before the last `::` is one of fsspec's caches.

    fsspec reads `A::B` as A on top of B, even in an object's name. File systems other than caches could open archives
    or run templates.
    """
    *caches, target = url.split("::")
    if any(cache.removesuffix("://") not in _CACHES for cache in caches) or target.lstrip().startswith(PIPE):
        raise UserError(f"shard {url}: only {', '.join(_CACHES)} may come before ::, and a URL after it")


def shard_name(url: str) -> str:
    """Return the shard's file name, for logs and reports."""
    return Path(local_path(url)).name
