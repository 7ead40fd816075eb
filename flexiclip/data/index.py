"""Where the index of a shard is kept, so that its headers are read once: beside it, in a named folder or in the user's cache.

A line of JSON, padded to 64 bytes, and behind it the arrays as they lie in memory: a run of 10,000 shards opens as many of these
before its first batch.

Where every member of every sample stands in a tar shard, found once and cached.

Reading the headers alone lets training jump to any sample, count an epoch exactly and resume anywhere. Samples are grouped as
webdataset groups them: neighbouring members that share their path up to the first dot of the file name. Where webdataset would
merge or refuse, samples are kept apart: a member that its sample has already begins another one, and a key that comes again is
told from the first by a number (`KEY#2`).

    flexiclip data index 'data/train-{0000..0015}.tar'

The cache is SHARD.index beside the shard, or a file in `data.index_cache`, or in ~/.cache/flexiclip when the shard is remote
or its folder is read-only. It is dropped when the shard's size, mtime or entity tag changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flexiclip.data.progress import progress
from flexiclip.data.reading import DEFAULT, Retries, open_ranges, retried, shard_stamp
from flexiclip.data.remote import is_remote, local_path, shard_name
from flexiclip.data.tar_walk import DamageError, Member, walk
from flexiclip.errors import UserError

_VERSION = 3  # of the layout
_FARTHEST = 2**50  # bytes of a shard
_ALIGNED = 64  # bytes

Arrays = dict[str, npt.NDArray[Any]]
DTYPES: dict[str, Any] = {
    "offset": np.int64,
    "key_first": np.uint32,
    "first": np.uint32,
    "size": np.uint32,
    "header": np.uint32,
    "extension": np.uint16,
    "key_bytes": np.uint8,
}
"""The arrays of an index, see index.py, the widest first so that each is aligned."""


def cache_paths(url: str, cache: str | None) -> list[str]:
    """Where the index may lie, best place first."""
    beside = not is_remote(url)
    absolute = os.path.abspath(local_path(url)) if beside else url
    name = f"{hashlib.sha256(os.fsencode(absolute)).hexdigest()[:16]}-{shard_name(url).split('?')[0]}.index"
    if cache is not None:
        return [os.path.join(os.path.expanduser(cache), name)]
    home = os.path.join(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"), "flexiclip", name)
    return [local_path(url) + ".index", home] if beside else [home]


def load_arrays(path: str, url: str, stamp: str) -> tuple[Arrays, tuple[str, ...], str] | None:
    """(arrays, extensions, damage) of the file; None when it is absent, of another shard or version, or no index."""
    try:
        with open(path, "rb") as file:
            data = file.read()
        end = data.index(b"\n")
        about = json.loads(data[:end])
        if about["version"] != _VERSION or about["stamp"] != stamp:
            return None
        arrays = _unpack(data, end + 1, about["lengths"])
        extensions = tuple(str(extension) for extension in about["extensions"])
        return (arrays, extensions, str(about["damage"])) if _are_sound(arrays, len(extensions), url) else None
    except (OSError, ValueError, TypeError, KeyError, IndexError, RecursionError):
        return None


def _unpack(data: bytes, start: int, lengths: list[int]) -> Arrays:
    """The arrays of these lengths; they fill the rest of the file, or it is none of ours. Raises ValueError, TypeError."""
    arrays: Arrays = {}
    for (name, dtype), length in zip(DTYPES.items(), lengths, strict=True):
        if length < 0:
            raise ValueError(f"{name} of {length}")
        arrays[name] = np.frombuffer(data, dtype, length, start) if length else np.empty(0, dtype)
        start += arrays[name].nbytes
    if start != len(data):
        raise ValueError(f"{len(data)} bytes, not {start}")
    return arrays


def _are_sound(arrays: Arrays, extensions: int, url: str) -> bool:
    """Whether an index that came with its shard from elsewhere is one: arrays that fit each other, places inside the shard."""
    members = len(arrays["size"])
    if not len(arrays["key_first"]) == len(arrays["first"]) > 0:
        return False
    if any(len(arrays[name]) != members for name in ("offset", "extension", "header")):
        return False
    for ends, count in ((arrays["key_first"], len(arrays["key_bytes"])), (arrays["first"], members)):
        if ends[0] != 0 or ends[-1] != count or (ends[1:] <= ends[:-1]).any():
            return False
    # Places past the shard's end are found when they are read; sums of larger numbers would wrap around.
    end = os.path.getsize(local_path(url)) if not is_remote(url) else _FARTHEST
    offset, size = arrays["offset"], arrays["size"].astype(np.int64)
    fits = (offset >= 512) & (offset <= end) & (size <= end - offset)
    return bool(fits.all() and (arrays["extension"] < extensions).all())


def pack(arrays: Arrays, extensions: tuple[str, ...], damage: str, stamp: str) -> bytes:
    """The content of the file."""
    lengths = [len(arrays[name]) for name in DTYPES]
    about = {"version": _VERSION, "stamp": stamp, "damage": damage, "extensions": extensions, "lengths": lengths}
    head = json.dumps(about).encode()
    head = head.ljust(-(-(len(head) + 1) // _ALIGNED) * _ALIGNED - 1) + b"\n"
    return head + b"".join(arrays[name].astype(dtype, copy=False).tobytes() for name, dtype in DTYPES.items())


def save_arrays(path: str, content: bytes) -> bool:
    """Write and rename, so that a reader in another process never meets half a file. False where writing is not allowed."""
    temporary = f"{path}.{secrets.token_hex(4)}.tmp"
    try:
        os.makedirs(os.path.dirname(path) or os.curdir, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        return False
    return True


_META = re.compile(r"__[^/]*__(/|$)")  # __MACOSX__-like folders and webdataset's own metadata
_EXTENSIONS = 2**16  # in a shard: with so many, what follows the first dot is no kind of file
_TRIED = 4  # local shards that show how much of the time is waiting
_RUN = 32  # shards handed to a thread at a time, where there are thousands: a hand-over costs as much as opening a cached index
_LARGEST = 2**32 - 1  # bytes of a member of a sample; a larger one is neither an image nor a caption


class Place(NamedTuple):
    """Where a member's content stands in its shard, in bytes, and the CRC-32 of the header block right before it."""

    offset: int
    size: int
    header: int


@dataclass(frozen=True)
class ShardIndex:
    """The members of a shard's N samples, M in all, as flat arrays: some 70 bytes a sample, so 10^7 samples fit in memory.

    Sample i owns the members `first[i]:first[i + 1]` and the key `key_bytes[key_first[i]:key_first[i + 1]]` (UTF-8).
    """

    url: str
    extensions: tuple[str, ...]  # lower-case, without the leading dot
    key_bytes: npt.NDArray[np.uint8]
    key_first: npt.NDArray[np.uint32]  # [N + 1]
    first: npt.NDArray[np.uint32]  # [N + 1]
    extension: npt.NDArray[np.uint16]  # [M], into extensions
    offset: npt.NDArray[np.int64]  # [M], bytes from the start of the shard
    size: npt.NDArray[np.uint32]  # [M], bytes
    header: npt.NDArray[np.uint32]  # [M], CRC-32 of the header block: what is read later must still stand behind it
    damage: str = ""  # why the shard ends with these samples, where it ends too early

    def __len__(self) -> int:
        return len(self.first) - 1

    def key(self, sample: int) -> str:
        """The sample's key: the members' path up to the first dot of the file name, `#2` and so on for one that comes again."""
        return self.key_bytes[self.key_first[sample] : self.key_first[sample + 1]].tobytes().decode("utf-8", "surrogateescape")

    def members(self, sample: int) -> dict[str, Place]:
        """Extension -> place, in the order of the tar file."""
        rows = range(self.first[sample], self.first[sample + 1])
        return {
            self.extensions[self.extension[row]]: Place(int(self.offset[row]), int(self.size[row]), int(self.header[row]))
            for row in rows
        }

    @property
    def content_bytes(self) -> int:
        """Bytes of all members, headers and padding left out."""
        return int(self.size.sum(dtype=np.int64))


def split_name(path: str) -> tuple[str, str] | None:
    """(key, extension) of a member, or None for what belongs to no sample (no extension, dotfiles, metadata)."""
    folder, slash, name = path.rpartition("/")
    stem, dot, extension = name.partition(".")
    if not stem or not dot or ("__" in path and (_META.match(path) or "__MACOSX" in folder.split("/"))):
        return None
    return folder + slash + stem, extension.lower()


def index_shard(url: str, cache: str | None = None, retries: Retries = DEFAULT) -> ShardIndex:
    """The shard's index, from the cache when it is fresh. A damaged shard gives the samples before the damage, and its reason.

    Raises UserError for a shard that cannot be reached or read.
    """
    stamp = shard_stamp(url, retries)
    paths = cache_paths(url, cache)
    for path in paths:
        found = load_arrays(path, url, stamp)
        if found is not None:
            arrays, extensions, damage = found
            return ShardIndex(url, extensions, damage=damage, **arrays)
    index = read_index(url, retries)
    content = pack({name: getattr(index, name) for name in DTYPES}, index.extensions, index.damage, stamp)
    any(save_arrays(path, content) for path in paths)
    return index


def index_shards(urls: Sequence[str], cache: str | None = None, retries: Retries = DEFAULT, workers: int = 8) -> list[ShardIndex]:
    """The indices of several shards, in order, see index_shard, by as many of `workers` threads as wait for storage."""
    return list(progress(_index_each(urls, cache, retries, workers), len(urls), "indexing shards"))


def _index_each(urls: Sequence[str], cache: str | None, retries: Retries, workers: int) -> Iterator[ShardIndex]:
    """Local shards may lie on a disk far away or in this machine's memory, where threads only stand in each other's way."""
    tried = 0 if any(map(is_remote, urls)) else _TRIED
    wall, busy = time.perf_counter(), time.thread_time()
    for url in urls[:tried]:
        yield index_shard(url, cache, retries)
    if tried:
        waiting = (time.perf_counter() - wall) / max(time.thread_time() - busy, 1e-6)
        workers = max(1, min(workers, round(waiting)))
    rest = urls[tried:]
    length = max(1, min(_RUN, len(rest) // (8 * workers)))
    runs = [rest[start : start + length] for start in range(0, len(rest), length)]
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for found in pool.map(lambda run: [index_shard(url, cache, retries) for url in run], runs):
            yield from found


def require_whole(indices: Iterable[ShardIndex]) -> list[ShardIndex]:
    """The same indices. Raises UserError that names the first damaged shard."""
    found = list(indices)
    for index in found:
        if index.damage:
            raise UserError(f"shard {index.url}: {index.damage}")
    return found


def read_index(url: str, retries: Retries = DEFAULT) -> ShardIndex:
    """Read the shard's headers, past any cache; see index_shard."""
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
    """Members in the order of the file, grouped into samples."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.first: list[int] = []
        self.extensions: dict[str, int] = {}
        self.rows: list[tuple[int, int, int, int]] = []
        self._current: str | None = None
        self._seen: set[str] = set()  # extensions of the current sample
        self._repeats: Counter[str] = Counter()
        self._names: set[str] = set()

    def add(self, member: Member) -> None:
        """Take in the next member of the file."""
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
        name = key
        while name in self._names:
            self._repeats[key] += 1
            name = f"{key}#{self._repeats[key] + 1}"
        self._names.add(name)
        return name

    def drop_if_cut(self, end: int) -> None:
        """Forget the last sample unless it is whole: it lies before `end`, and has the members that the one before it has."""
        if not self.first:
            return
        last = self.rows[self.first[-1] :]
        before = self.rows[self.first[-2] : self.first[-1]] if len(self.first) > 1 else []
        _, offset, size, _ = last[-1]
        if offset + size > end or {row[0] for row in last} != {row[0] for row in before}:
            del self.rows[self.first.pop() :]
            self.keys.pop()

    def index(self, url: str, damage: str) -> ShardIndex:
        """All of it as arrays."""
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
