"""Naming shards and reading byte ranges of them, local or remote.

A shard is a tar file given by a path or by any URL that fsspec knows (s3://, gs://, https://, memory://, and chains such as
`filecache::s3://...`, which keeps a local copy of what it reads). Samples are read by (offset, size), so nothing here parses tar.
"""

from __future__ import annotations

import functools
import glob
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any, cast

from flexiclip.errors import UserError

_OPEN_FILES = 256  # descriptors kept per process; far below the usual limit of 1024
_ATTEMPTS = 4  # of a remote read, 0.2 s apart and doubling: a network hiccup must not change which samples are trained on


def is_remote(url: str) -> bool:
    """Whether the shard is reached through fsspec rather than as a local file."""
    return "://" in url and not url.startswith("file://")


def local_path(url: str) -> str:
    """The path of a local shard, `file://` taken off."""
    return url.removeprefix("file://")


def expand_shards(spec: str | Sequence[str], *, allow_shell: bool = False) -> list[str]:
    """Every shard that brace ranges, globs, paths and URLs name: sorted, each once.

    spec: `train-{0000..0015}.tar`, `data/*.tar`, `s3://bucket/train-*.tar`, or a list of those.
    allow_shell: let `pipe:COMMAND` through untouched; the command runs in a shell.
    Raises UserError for a local shard that does not exist, a glob that matches nothing, and an unwanted `pipe:`.
    """
    patterns = [spec] if isinstance(spec, str) else list(spec)
    if not patterns:
        raise UserError("no shards given: name at least one, for example data.train=data/train-{0000..0003}.tar")
    return sorted({url for pattern in patterns for url in _expand(pattern, allow_shell)})


def _expand(pattern: str, allow_shell: bool) -> Iterable[str]:
    import braceexpand

    if pattern.startswith("pipe:"):
        if not allow_shell:
            raise UserError(f"shard {pattern!r} would run a shell command: set data.allow_shell=true if you trust it")
        return [pattern]
    try:
        urls = list(braceexpand.braceexpand(pattern))
    except ValueError as error:  # UnbalancedBracesError among them
        raise UserError(f"shards {pattern!r}: {error}") from None
    return [shard for url in urls for shard in (_expand_remote(url) if is_remote(url) else _expand_local(local_path(url)))]


def _expand_local(path: str) -> list[str]:
    path = os.path.expanduser(path)
    if os.path.isfile(path):  # first, so that a file whose name holds a bracket is itself
        return [path]
    if not glob.has_magic(path):
        kind = "a folder: name its shards, for example DIR/*.tar" if os.path.isdir(path) else "no such file"
        raise UserError(f"shard {path}: {kind}")
    found = glob.glob(path, recursive=True)
    if not found:
        raise UserError(f"shards {path}: the pattern matches no file (working folder {os.getcwd()})")
    return found


def _expand_remote(url: str) -> list[str]:
    # `?` is a wildcard in a path but the query mark of a web address.
    if not any(mark in url for mark in ("*[" if url.startswith("http") else "*?[")):
        return [url]
    chain, separator, target = url.rpartition("::")  # filecache::s3://...: list the target, read through the chain
    fs, path = _filesystem(target)
    found = [chain + separator + str(fs.unstrip_protocol(p)) for p in fs.glob(path)]
    if not found:
        raise UserError(f"shards {url}: the pattern matches nothing")
    return found


def _filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system (cached by fsspec per process, so safe after a fork) and the path inside it."""
    import fsspec

    try:
        return cast("tuple[Any, str]", fsspec.core.url_to_fs(url))
    except (ImportError, ValueError) as error:  # an unknown protocol, or one whose package is missing
        raise UserError(f"shard {url}: {error}") from None


class _Descriptor:
    """An open file, closed when the last user lets go of it."""

    def __init__(self, path: str) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


@functools.lru_cache(maxsize=_OPEN_FILES)
def _descriptor(path: str) -> _Descriptor:
    return _Descriptor(path)


def read_range(url: str, offset: int, size: int) -> bytes:
    """`size` bytes from `offset`. Raises OSError when the shard is gone, unreachable or too short."""
    data = _read_remote(url, offset, size) if is_remote(url) else _read_local(local_path(url), offset, size)
    if len(data) < size:
        raise OSError(f"short read: {len(data)} of {size} bytes at offset {offset}")
    return data


def _read_local(path: str, offset: int, size: int) -> bytes:
    # pread takes its own offset: descriptors inherited over a fork, or shared by threads, do not disturb each other.
    descriptor = _descriptor(path)
    # pread would take memory for all that is asked for before it finds the end of the file.
    size = min(size, max(0, os.fstat(descriptor.number).st_size - offset))
    data = os.pread(descriptor.number, size, offset)
    while 0 < len(data) < size:  # the kernel may return less than asked for
        more = os.pread(descriptor.number, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def _read_remote(url: str, offset: int, size: int) -> bytes:
    fs, path = _filesystem(url)
    for attempt in range(_ATTEMPTS):
        try:
            data = cast(bytes, fs.cat_file(path, start=offset, end=offset + size))
            break
        except FileNotFoundError:
            raise
        except Exception as error:  # each backend has exceptions of its own (aiohttp, botocore, ...)
            if attempt == _ATTEMPTS - 1:
                raise OSError(f"cannot read {url}: {type(error).__name__}: {error}") from error
            time.sleep(0.2 * 2**attempt)
    if len(data) > size:
        raise OSError(f"{url}: the server ignores byte ranges, so samples cannot be read one by one: set data.sequential=true")
    return data


def reads_in_parallel(url: str) -> bool:
    """Whether threads may read the shard at once, and gain by it: object stores and HTTP, not fsspec's caches and memory."""
    return is_remote(url) and bool(_filesystem(url)[0].async_impl)


def open_shard(url: str) -> IO[bytes]:
    """The shard as a seekable stream, for reading its headers. Raises UserError when it cannot be opened."""
    try:
        if not is_remote(url):
            return open(local_path(url), "rb")
        fs, path = _filesystem(url)
        return cast("IO[bytes]", fs.open(path, "rb"))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"shard {url}: cannot be opened: {type(error).__name__}: {error}") from None


def shard_stamp(url: str) -> str:
    """A text that changes when the shard's content does: size and mtime of a file, size and entity tag of an object.

    Raises UserError when the shard cannot be reached.
    """
    try:
        if not is_remote(url):
            stat = os.stat(local_path(url))
            return f"{stat.st_size}-{stat.st_mtime_ns}"
        fs, path = _filesystem(url)
        info = fs.info(path)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"shard {url}: cannot be reached: {type(error).__name__}: {error}") from None
    tags = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "updated", "mtime", "created")
    return f"{info.get('size')}-{next((info[tag] for tag in tags if info.get(tag)), '')}"


def prefetch(urls: Iterable[str]) -> None:
    """Ask the kernel to read these local shards ahead, unless they would fill more than a quarter of the memory.

    A remote shard needs nothing here: its URL may be prefixed with `filecache::`, which keeps what was read.
    """
    paths = [local_path(url) for url in urls if not is_remote(url) and os.path.exists(local_path(url))]
    if not hasattr(os, "posix_fadvise"):
        return
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if sum(os.path.getsize(path) for path in paths) > memory / 4:
        return
    for path in paths:
        os.posix_fadvise(_descriptor(path).number, 0, 0, os.POSIX_FADV_WILLNEED)


def shard_name(url: str) -> str:
    """The shard's file name, for logs and reports."""
    return Path(local_path(url)).name
