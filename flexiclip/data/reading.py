"""Reads byte ranges and members of local and remote shards, and retries reads that fail.

A read that fails, takes too long or returns too few bytes is retried after a pause that doubles each time. A failure
that retrying cannot fix (a missing file, a denied permission, a file that is too short) is raised at once. A short
network outage therefore does not change which samples are trained on, and storage that is gone does not keep a run
waiting.

A shard may be replaced after it was indexed. Each read of members therefore includes the header block right before each
member's content. The index holds the CRC-32 of that block, which covers the member's name, size and time.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, TypeVar

from fsspec.implementations.cached import CachingFileSystem

from flexiclip.data.remote import FinalError, bounded, filesystem, is_remote, local_path, read_remote, read_remote_whole
from flexiclip.data.tar_walk import BLOCK, Member
from flexiclip.errors import UserError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

T = TypeVar("T")

_OPEN_FILES = 256  # descriptors kept per process; far below the usual limit of 1024
_LARGE = 2**20  # bytes
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 30.0
_BUFFER = 2**22  # bytes read at once from a remote shard while it is indexed
_PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_PASSING_STATUS = (408, 425, 429)  # HTTP 4xx errors that may pass: timeout, too early, too many requests
_GAP = 2**20  # up to this many bytes between two members are read along, because a second round trip costs more
_LARGEST_SAMPLE = 2**28  # bytes of the members of a sample


@dataclass(frozen=True)
class Retries:
    """The number of attempts at a read, and the seconds per attempt for remote shards.

    The recipe sets them as `data.read_attempts` and `data.read_timeout_s`. There is no time limit for a local read,
    which cannot be interrupted, or for a `filecache::` URL, which fetches a whole shard at once.
    """

    attempts: int = 4
    timeout_s: float = 60.0


DEFAULT = Retries()


class ChangedError(OSError):
    """The shard has changed since it was indexed."""


def read_range(url: str, offset: int, size: int, retries: Retries = DEFAULT) -> bytes:
    """Return `size` bytes from `offset`.

    Raises OSError if the shard is missing, unreachable or too short, or if all attempts have failed.
    """
    if not is_remote(url):
        return retried(lambda: _read_local(local_path(url), offset, size), f"{url}:{offset}", retries, OSError)
    return retried(lambda: read_remote(url, offset, size, retries.timeout_s), f"{url}:{offset}", retries)


def read_whole(place: str, most: int, retries: Retries = DEFAULT) -> bytes:
    """Return the content of a small file at a path or URL.

    Raises FileNotFoundError if there is no such file, and OSError if it cannot be read or has more than `most` bytes.
    """
    if is_remote(place):
        return retried(lambda: read_remote_whole(place, most, retries.timeout_s), place, retries)
    with open(local_path(place), "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise FinalError(f"{place}: more than {most} bytes")
    return data


def read_members(url: str, members: Sequence[Member], retries: Retries) -> dict[str, bytes]:
    """Return the contents of members of a shard by name, in the given order.

    Raises OSError if they cannot be read, and its subclass ChangedError if the shard has changed since it was indexed.
    """
    total = sum(member.size for member in members)
    if total > _LARGEST_SAMPLE:
        raise OSError(f"its members hold {total} bytes: too many to read")
    found: dict[str, bytes] = {}
    for run in _runs(members):
        found |= _read_run(url, run, retries)
    return {member.name: found[member.name] for member in members}


def _runs(members: Sequence[Member]) -> Iterator[list[Member]]:
    """Yield runs of members that are each read at once.

    The members of a sample are neighbors, so there is one run unless a large unwanted member is between them.
    """
    run: list[Member] = []
    for member in sorted(members, key=lambda member: member.offset):
        if run and member.offset - max(earlier.end for earlier in run) > _GAP:
            yield run
            run = []
        run.append(member)
    if run:
        yield run


def _read_run(url: str, run: list[Member], retries: Retries) -> dict[str, bytes]:
    """Read one run and return the members' contents by name."""
    start = run[0].offset - BLOCK
    size = max(member.end for member in run) - start
    data = read_range(url, start, size, retries)
    if not _is_as_indexed(data, start, run) and not is_remote(url):
        reopen()  # this process may hold an older file open
        data = read_range(url, start, size, retries)
    if not _is_as_indexed(data, start, run):
        raise ChangedError("the shard has changed since it was indexed")
    return {member.name: data[member.offset - start : member.end - start] for member in run}


def _is_as_indexed(data: bytes, start: int, run: list[Member]) -> bool:
    """Whether the header blocks of all members have the CRC-32 that the index holds."""
    return all(zlib.crc32(data[member.offset - BLOCK - start : member.offset - start]) == member.header for member in run)


def retried(action: Callable[[], T], place: str, retries: Retries, failures: type[Exception] = Exception) -> T:
    """Return the action's result, after at most `retries.attempts` attempts.

    A UserError is raised at once. An exception of the type `failures` becomes an OSError after the last attempt.
    `place` seeds the jitter of the pauses, so that a thousand workers do not retry at the same moment.
    """
    for attempt in range(1, retries.attempts + 1):
        try:
            return action()
        except UserError:
            raise
        except failures as error:  # each backend has its own exceptions (aiohttp, botocore, ...)
            if _is_final(error):
                raise error if isinstance(error, OSError) else OSError(_said(error)) from None
            if attempt == retries.attempts:
                raise OSError(f"{_said(error)} ({attempt} attempts)") from error
        jitter = 0.5 + zlib.crc32(f"{place}:{attempt}".encode("utf-8", "replace")) / 2**32
        time.sleep(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (attempt - 1)) * jitter)
    raise AssertionError("data.read_attempts is positive")


def _is_final(error: Exception) -> bool:
    """Whether retrying cannot help."""
    status = getattr(error, "status", None)  # aiohttp's
    refused = isinstance(status, int) and 400 <= status < 500 and status not in _PASSING_STATUS
    return refused or isinstance(error, (FinalError, *_PERMANENT))


def _said(error: Exception) -> str:
    """Return the text of an error, with its type unless it is an OSError."""
    return str(error) if isinstance(error, OSError) and str(error) else f"{type(error).__name__}: {error}"


@functools.lru_cache(maxsize=_OPEN_FILES)
def _opened(path: str) -> io.FileIO:
    """Open a local file, or return it if it is open. Python closes a file when the cache and its last user have dropped it."""
    return io.FileIO(path)


def _read_local(path: str, offset: int, size: int) -> bytes:
    file = _opened(path)
    try:
        if size > _LARGE and size > os.fstat(file.fileno()).st_size - offset:  # pread would first allocate memory for all of it
            raise FinalError(f"short read: {size} bytes at offset {offset} lie beyond the end of the file")
        data = b""
        while len(data) < size:  # the kernel may return less than asked for
            # pread takes an explicit offset, so forked processes and threads can share a descriptor.
            more = os.pread(file.fileno(), size - len(data), offset + len(data))
            if not more:
                raise FinalError(f"short read: {len(data)} of {size} bytes at offset {offset}")
            data += more
    except FinalError:
        raise
    except OSError:  # for example a stale handle of a network file system
        reopen()
        raise
    return data


def reopen() -> None:
    """Make the next read of a local shard open the file again, because it may have been replaced."""
    _opened.cache_clear()


class _Ranges(io.RawIOBase):
    """A remote shard as a seekable file of `size` bytes, each read of which is retried and timed by `read_range`."""

    def __init__(self, url: str, size: int, retries: Retries) -> None:
        self.url, self.size, self.retries = url, size, retries
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        return self.position

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self.size - self.position))
        view[:wanted] = read_range(self.url, self.position, wanted, self.retries) if wanted else b""
        self.position += wanted
        return wanted


def open_ranges(url: str, retries: Retries = DEFAULT) -> IO[bytes]:
    """Open the shard as a seekable stream that reads byte ranges.

    Raises OSError if the shard cannot be reached or the server does not report its size.
    """
    if not is_remote(url):
        return open(local_path(url), "rb")
    size = _info(url, retries).get("size")
    if size is None:
        raise OSError("the server does not say how large it is: set data.sequential=true")
    return io.BufferedReader(_Ranges(url, int(size), retries), _BUFFER)


def _info(url: str, retries: Retries) -> dict[str, Any]:
    """Return what fsspec tells about a remote shard. Its keys depend on the backend."""
    fs, path = filesystem(url)
    return retried(lambda: bounded(fs, "info", retries.timeout_s, path), url, retries)


def reads_in_parallel(url: str) -> bool:
    """Whether threads may read the shard at the same time and gain by it.

    This holds for object stores and HTTP. It does not hold for local files, fsspec's caches and its memory file system.
    """
    if not is_remote(url):
        return False
    fs = filesystem(url)[0]
    return fs.async_impl and not isinstance(fs, CachingFileSystem)


def shard_stamp(url: str, retries: Retries = DEFAULT) -> str:
    """Return a text that changes when the shard's content does.

    It holds a file's size and mtime, or an object's size and entity tag. Raises UserError if the shard cannot be
    reached.
    """
    try:
        if not is_remote(url):
            stat = os.stat(local_path(url))
            return f"{stat.st_size}-{stat.st_mtime_ns}"
        info = _info(url, retries)
    except OSError as error:
        raise UserError(f"shard {url}: cannot be reached: {type(error).__name__}: {error}") from None
    times = ("LastModified", "last_modified", "Last-Modified", "updated", "mtime", "created")
    tags = ("ETag", "etag", "md5Hash", "Content-MD5", *times)
    return f"{info.get('size')}-{next((info[tag] for tag in tags if info.get(tag)), '')}"


def prefetch(urls: Iterable[str]) -> None:
    """Ask the kernel to read these local shards ahead, unless they would fill more than a quarter of the memory.

    Remote shards are skipped; the prefix `filecache::` in a URL keeps a local copy of what was read. A shard that
    cannot be opened is skipped too, and the read that needs it reports the error.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    sizes: dict[str, int] = {}
    for path in [local_path(url) for url in urls if not is_remote(url)]:
        with contextlib.suppress(OSError):
            sizes[path] = os.path.getsize(path)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if sum(sizes.values()) > memory / 4:
        return
    for path in sizes:
        with contextlib.suppress(OSError):
            os.posix_fadvise(_opened(path).fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
