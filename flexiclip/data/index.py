"""Indexes a tar shard: the place of every member of every sample, found once and cached in a file.

Reading only the headers lets training jump to any sample, count an epoch exactly and resume anywhere. Samples are
grouped as in webdataset: neighboring members form one sample if their paths agree up to the first dot of the file name.
Where webdataset would merge samples or raise an error, they are kept apart: a member whose extension the sample already
has begins a new sample, and a key that occurs again gets a number (`KEY#2`).

    flexiclip data index 'data/train-{0000..0015}.tar'       counts the samples and bytes of shards

The cache is the file SHARD.index next to the shard, or a file in the folder `data.index_cache`. It is in
~/.cache/flexiclip if the shard is remote or its folder is read-only. A cached index is dropped when the shard's size,
mtime or entity tag changes. The file holds one line of JSON, padded to a multiple of 64 bytes, and then the arrays as
they are in memory, because a run with 10,000 shards opens 10,000 of these files before its first batch.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flexiclip.data.reading import DEFAULT, Retries, open_ranges, retried, shard_stamp
from flexiclip.data.remote import is_remote, local_path, shard_name
from flexiclip.data.tar_walk import BLOCK, DamageError, Member, walk
from flexiclip.errors import UserError
from flexiclip.files import write_whole
from flexiclip.progress import progress

_VERSION = 3  # of the file's layout
_FARTHEST = 2**50  # the largest size of a shard, in bytes
_ALIGNED = 64  # bytes

DTYPES: dict[str, npt.DTypeLike] = {
    "offset": np.int64,
    "key_first": np.uint32,
    "first": np.uint32,
    "size": np.uint32,
    "header": np.uint32,
    "extension": np.uint16,
    "key_bytes": np.uint8,
}
"""The arrays of an index (see ShardIndex) with the widest dtype first, so that each array is aligned."""

_META = re.compile(r"__[^/]*__(/|$)")  # folders such as __MACOSX__, and webdataset's own metadata
_EXTENSIONS = 2**16  # different extensions in a shard; with more, the text after the first dot is not a kind of file
_THREADS = 8  # the most threads that index shards
_TRIED = 4  # local shards that are timed to learn how much of the time is spent waiting
_RUN = 32  # shards handed to a thread at a time, if there are thousands; handing over costs as much as opening a cached index
_LARGEST = 2**32 - 1  # bytes of a member; a larger one is neither an image nor a caption


@dataclass(frozen=True)
class ShardIndex:
    """The M members of a shard's N samples as flat arrays: about 70 bytes per sample, so 10^7 samples fit in memory.

    Sample i owns the members `first[i]:first[i + 1]` and the key `key_bytes[key_first[i]:key_first[i + 1]]` (UTF-8).
    """

    url: str
    extensions: tuple[str, ...]  # lower-case, without the leading dot
    key_bytes: npt.NDArray[np.uint8]
    key_first: npt.NDArray[np.uint32]  # [N + 1]
    first: npt.NDArray[np.uint32]  # [N + 1]
    extension: npt.NDArray[np.uint16]  # [M], indices into `extensions`
    offset: npt.NDArray[np.int64]  # [M], bytes from the start of the shard
    size: npt.NDArray[np.uint32]  # [M], bytes
    header: npt.NDArray[np.uint32]  # [M], CRC-32 of the header block, which a later read compares with the file
    damage: str = ""  # the reason why the shard ends too early, "" if it does not

    def __len__(self) -> int:
        return len(self.first) - 1

    def key(self, sample: int) -> str:
        """Return the sample's key: the path of its members up to the first dot of the file name.

        A key that occurs again in the shard ends with `#2`, `#3` and so on.
        """
        return self.key_bytes[self.key_first[sample] : self.key_first[sample + 1]].tobytes().decode("utf-8", "surrogateescape")

    def members(self, sample: int) -> list[Member]:
        """Return the members of a sample in the order of the tar file. The name of each is its extension."""
        return [
            Member(self.extensions[self.extension[row]], int(self.offset[row]), int(self.size[row]), int(self.header[row]))
            for row in range(self.first[sample], self.first[sample + 1])
        ]

    @property
    def content_bytes(self) -> int:
        """The total size of all members in bytes, without headers and padding."""
        return int(self.size.sum(dtype=np.int64))


def _cache_paths(url: str, cache: str | None) -> list[Path]:
    """Return the paths at which the index may be stored, in order of preference."""
    remote = is_remote(url)
    absolute = url if remote else os.path.abspath(local_path(url))
    name = f"{hashlib.sha256(os.fsencode(absolute)).hexdigest()[:16]}-{shard_name(url).split('?')[0]}.index"
    if cache is not None:
        return [Path(os.path.expanduser(cache), name)]
    home = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"), "flexiclip", name)
    return [home] if remote else [Path(f"{local_path(url)}.index"), home]


def _load(path: Path, url: str, stamp: str) -> ShardIndex | None:
    """Return the index in a file.

    Returns None if the file is missing, is not a valid index, or belongs to another version or another state of the
    shard.
    """
    try:
        data = path.read_bytes()
        end = data.index(b"\n")
        about = json.loads(data[:end])
        if about["version"] != _VERSION or about["stamp"] != stamp:
            return None
        arrays = _unpack(data, end + 1, about["lengths"])
        index = ShardIndex(url, tuple(map(str, about["extensions"])), damage=str(about["damage"]), **arrays)
        return index if _is_sound(index) else None
    except (OSError, ValueError, TypeError, KeyError, IndexError, RecursionError):
        return None


def _unpack(data: bytes, start: int, lengths: list[int]) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of these lengths. Raises ValueError or TypeError unless they fill the rest of the file exactly."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for (name, dtype), length in zip(DTYPES.items(), lengths, strict=True):
        if not 0 <= length <= len(data):
            raise ValueError(f"{name} of {length}")
        arrays[name] = np.frombuffer(data, dtype, length, start) if length else np.empty(0, dtype)
        start += arrays[name].nbytes
    if start != len(data):
        raise ValueError(f"{len(data)} bytes, not {start}")
    return arrays


def _is_sound(index: ShardIndex) -> bool:
    """Whether the arrays fit each other and all members are inside the shard.

    An index may have been downloaded together with its shard, so it is not trusted.
    """
    members = len(index.size)
    if not len(index.key_first) == len(index.first) > 0:
        return False
    if any(len(column) != members for column in (index.offset, index.extension, index.header)):
        return False
    for ends, count in ((index.key_first, len(index.key_bytes)), (index.first, members)):
        if ends[0] != 0 or ends[-1] != count or (ends[1:] <= ends[:-1]).any():
            return False
    # Members past a remote shard's end fail when they are read. The limit keeps the sums below from overflowing.
    end = os.path.getsize(local_path(index.url)) if not is_remote(index.url) else _FARTHEST
    fits = (index.offset >= BLOCK) & (index.offset <= end) & (index.size.astype(np.int64) <= end - index.offset)
    return bool(fits.all() and (index.extension < len(index.extensions)).all())


def pack(index: ShardIndex, stamp: str) -> bytes:
    """Return the content of an index file. `stamp`: the shard_stamp of the shard."""
    arrays = [getattr(index, name).astype(dtype, copy=False) for name, dtype in DTYPES.items()]
    lengths = [len(array) for array in arrays]
    about = {"version": _VERSION, "stamp": stamp, "damage": index.damage, "extensions": index.extensions, "lengths": lengths}
    head = json.dumps(about).encode()
    head = head.ljust(-(-(len(head) + 1) // _ALIGNED) * _ALIGNED - 1) + b"\n"
    return head + b"".join(array.tobytes() for array in arrays)


def _save(path: Path, content: bytes) -> bool:
    """Write an index file. Returns False if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError:
        return False
    return True


def split_name(path: str) -> tuple[str, str] | None:
    """Split a member's path into (key, extension).

    Returns None for a member that belongs to no sample: one without an extension, a dotfile, or metadata.
    """
    folder, slash, name = path.rpartition("/")
    stem, dot, extension = name.partition(".")
    if not stem or not dot or ("__" in path and (_META.match(path) or "__MACOSX" in folder.split("/"))):
        return None
    return folder + slash + stem, extension.lower()


def index_shard(url: str, cache: str | None = None, retries: Retries = DEFAULT) -> ShardIndex:
    """Return the shard's index, from the cache if that is up to date.

    The index of a damaged shard holds the samples before the damage and the reason. Raises UserError for a shard that
    cannot be reached or read.
    """
    stamp, paths = shard_stamp(url, retries), _cache_paths(url, cache)
    for path in paths:
        index = _load(path, url, stamp)
        if index is not None:
            return index
    index = read_index(url, retries)
    content = pack(index, stamp)
    any(_save(path, content) for path in paths)
    return index


def index_shards(urls: Sequence[str], cache: str | None = None, retries: Retries = DEFAULT) -> list[ShardIndex]:
    """Return the indices of several shards, in order (see `index_shard`).

    Several threads are used, and for local shards only as many as spend their time waiting for storage.
    """
    return list(progress(_index_each(urls, cache, retries), len(urls), "indexing shards"))


def _index_each(urls: Sequence[str], cache: str | None, retries: Retries) -> Iterator[ShardIndex]:
    """Yield the indices of the shards, in order.

    A local path may be on a remote disk, where threads help, or in this machine's memory, where they only slow each
    other down. The first shards are therefore timed: the number of threads is the ratio of elapsed time to processor
    time.
    """
    tried, threads = 0 if any(map(is_remote, urls)) else _TRIED, _THREADS
    wall, busy = time.perf_counter(), time.thread_time()
    for url in urls[:tried]:
        yield index_shard(url, cache, retries)
    if tried:
        waiting = (time.perf_counter() - wall) / max(time.thread_time() - busy, 1e-6)
        threads = max(1, min(threads, round(waiting)))
    rest = urls[tried:]
    length = max(1, min(_RUN, len(rest) // (8 * threads)))
    runs = [rest[start : start + length] for start in range(0, len(rest), length)]
    with ThreadPoolExecutor(threads) as pool:
        for found in pool.map(lambda run: [index_shard(url, cache, retries) for url in run], runs):
            yield from found


def require_whole(indices: Iterable[ShardIndex]) -> list[ShardIndex]:
    """Return the same indices. Raises UserError that names the first damaged shard."""
    found = list(indices)
    for index in found:
        if index.damage:
            raise UserError(f"shard {index.url}: {index.damage}")
    return found


def read_index(url: str, retries: Retries = DEFAULT) -> ShardIndex:
    """Read the shard's headers without looking at the cache (see `index_shard`)."""
    try:
        # Remote ranges are retried one by one; a local file that fails is read again from its start.
        return _scan(url, retries) if is_remote(url) else retried(lambda: _scan(url, retries), url, retries, OSError)
    except OSError as error:
        raise UserError(f"shard {url}: cannot be read: {error}") from None


def _scan(url: str, retries: Retries) -> ShardIndex:
    groups, damage = _Groups(), ""
    with open_ranges(url, retries) as stream:
        try:
            for member in walk(stream):
                groups.add(member)
        except DamageError as error:
            damage = str(error)
            groups.drop_if_cut(stream.seek(0, os.SEEK_END))
    return groups.index(url, damage)


class _Groups:
    """Groups the members of a tar file into samples, in the order of the file."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.first: list[int] = []
        self.extensions: dict[str, int] = {}
        self.rows: list[tuple[int, int, int, int]] = []
        self._current: str | None = None
        self._seen: set[str] = set()  # the extensions of the current sample
        self._repeats: Counter[str] = Counter()
        self._names: set[str] = set()

    def add(self, member: Member) -> None:
        """Add the next member of the file."""
        parts = split_name(member.name)
        if parts is None or member.size > _LARGEST:
            return
        key, extension = parts
        if extension not in self.extensions and len(self.extensions) == _EXTENSIONS:
            return
        if key != self._current or extension in self._seen:
            self.keys.append(self._distinct(key).encode("utf-8", "surrogateescape"))
            self.first.append(len(self.rows))
            self._current, self._seen = key, set()
        self._seen.add(extension)
        self.rows.append((self.extensions.setdefault(extension, len(self.extensions)), member.offset, member.size, member.header))

    def _distinct(self, key: str) -> str:
        """Return the key, with a number appended if the shard already has it."""
        name = key
        while name in self._names:
            self._repeats[key] += 1
            name = f"{key}#{self._repeats[key] + 1}"
        self._names.add(name)
        return name

    def drop_if_cut(self, end: int) -> None:
        """Drop the last sample unless it is whole.

        It is whole if it ends before `end` and has the same kinds of members as the sample before it.
        """
        if not self.first:
            return
        last = self.rows[self.first[-1] :]
        before = self.rows[self.first[-2] : self.first[-1]] if len(self.first) > 1 else []
        _, offset, size, _ = last[-1]
        if offset + size > end or {row[0] for row in last} != {row[0] for row in before}:
            del self.rows[self.first.pop() :]
            self.keys.pop()

    def index(self, url: str, damage: str) -> ShardIndex:
        """Return everything that was added as a ShardIndex."""
        extension, offset, size, header = zip(*self.rows, strict=True) if self.rows else ((), (), (), ())
        return ShardIndex(
            url=url,
            extensions=tuple(self.extensions),
            key_bytes=np.frombuffer(b"".join(self.keys), np.uint8),
            key_first=np.array([0, *itertools.accumulate(map(len, self.keys))], np.uint32),
            first=np.array([*self.first, len(self.rows)], np.uint32),
            extension=np.array(extension, np.uint16),
            offset=np.array(offset, np.int64),
            size=np.array(size, np.uint32),
            header=np.array(header, np.uint32),
            damage=damage,
        )
