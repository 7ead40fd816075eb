"""Where every member of every sample stands in a tar shard, found once and cached.

Reading the headers alone lets training jump to any sample, count an epoch exactly and resume anywhere. Samples are grouped as
webdataset groups them: neighbouring members that share their path up to the first dot of the file name.

    flexiclip data index 'data/train-{0000..0015}.tar'

The cache is SHARD.index.npz beside the shard, or a file in `data.index_cache`, or in ~/.cache/flexiclip when the shard is remote
or its folder is read-only. It is dropped when the shard's size, mtime or entity tag changes.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from flexiclip.arrays import read_npz
from flexiclip.data.progress import progress
from flexiclip.data.reading import DEFAULT, Retries, open_ranges, shard_stamp
from flexiclip.data.shards import is_remote, local_path, shard_name
from flexiclip.errors import UserError

_VERSION = 1  # of the cache's layout
_META = re.compile(r"__[^/]*__(/|$)")  # __MACOSX__-like folders and webdataset's own metadata
_BLOCK = 512  # bytes of a tar header
_FARTHEST = 2**50  # bytes of any shard
_LONGEST_HEADER = 2**20  # bytes of a long name or of pax records


@dataclass(frozen=True)
class ShardIndex:
    """The members of a shard's N samples, M in all, as flat arrays: some 60 bytes a sample, so 10^7 samples fit in memory.

    Sample i owns the members `first[i]:first[i + 1]` and the key `key_bytes[key_first[i]:key_first[i + 1]]` (UTF-8).
    """

    url: str
    extensions: tuple[str, ...]  # lower-case, without the leading dot
    key_bytes: npt.NDArray[np.uint8]
    key_first: npt.NDArray[np.uint32]  # [N + 1]
    first: npt.NDArray[np.uint32]  # [N + 1]
    extension: npt.NDArray[np.uint16]  # [M], into extensions
    offset: npt.NDArray[np.int64]  # [M], bytes from the start of the shard
    size: npt.NDArray[np.int64]  # [M], bytes

    def __len__(self) -> int:
        return len(self.first) - 1

    def key(self, sample: int) -> str:
        """The sample's key: the members' path up to the first dot of the file name."""
        return self.key_bytes[self.key_first[sample] : self.key_first[sample + 1]].tobytes().decode("utf-8", "surrogateescape")

    def members(self, sample: int) -> dict[str, tuple[int, int]]:
        """Extension -> (offset, size) in bytes, in the order of the tar file."""
        rows = range(self.first[sample], self.first[sample + 1])
        return {self.extensions[self.extension[row]]: (int(self.offset[row]), int(self.size[row])) for row in rows}

    @property
    def content_bytes(self) -> int:
        """Bytes of all members, headers and padding left out."""
        return int(self.size.sum())


def split_name(path: str) -> tuple[str, str] | None:
    """(key, extension) of a member, or None for what belongs to no sample (no extension, dotfiles, metadata)."""
    folder, slash, name = path.rpartition("/")
    stem, dot, extension = name.partition(".")
    if not stem or not dot or _META.match(path) or "__MACOSX" in folder.split("/"):
        return None
    return folder + slash + stem, extension.lower()


def index_shard(url: str, cache: str | None = None, retries: Retries = DEFAULT) -> ShardIndex:
    """The shard's index, from the cache when it is fresh. Raises UserError for a missing, compressed or damaged shard."""
    stamp = shard_stamp(url, retries)
    paths = _cache_paths(url, cache)
    for path in paths:
        index = _load(path, url, stamp)
        if index is not None:
            return index
    index = read_index(url, retries)
    for path in paths:
        if _save(path, index, stamp):
            break
    return index


def index_shards(urls: Sequence[str], cache: str | None = None, retries: Retries = DEFAULT, workers: int = 8) -> list[ShardIndex]:
    """The indices of several shards, in order. `workers` threads: the work is waiting for storage."""
    with ThreadPoolExecutor(max_workers=workers) as pool:
        found = pool.map(lambda url: index_shard(url, cache, retries), urls)
        return list(progress(found, len(urls), "indexing shards"))


def read_index(url: str, retries: Retries = DEFAULT) -> ShardIndex:
    """Read the shard's headers, past any cache. Raises UserError that names a damaged shard."""
    keys: list[bytes] = []
    first: list[int] = []
    extensions: dict[str, int] = {}
    rows: list[tuple[int, int, int]] = []
    current: str | None = None
    seen: set[str] = set()
    for name, offset, size in _members(url, retries):
        parts = split_name(name)
        if parts is None:
            continue
        key, extension = parts
        if key != current:
            keys.append(key.encode("utf-8", "surrogateescape"))
            first.append(len(rows))
            current, seen = key, set()
        if extension in seen:
            raise UserError(f"shard {url}: sample {key!r} has two members {extension!r}")
        seen.add(extension)
        rows.append((extensions.setdefault(extension, len(extensions)), offset, size))
    table = np.array(rows, dtype=np.int64).reshape(-1, 3)
    return ShardIndex(
        url=url,
        extensions=tuple(extensions),
        key_bytes=np.frombuffer(b"".join(keys), dtype=np.uint8),
        key_first=np.cumsum([0, *map(len, keys)]).astype(np.uint32),
        first=np.array([*first, len(rows)], dtype=np.uint32),
        extension=table[:, 0].astype(np.uint16),
        offset=table[:, 1].copy(),
        size=table[:, 2].copy(),
    )


def _members(url: str, retries: Retries) -> Iterator[tuple[str, int, int]]:
    """(name, offset of the content, size) of every regular file; a shard that ends early is an error, not a shorter shard."""
    try:
        with open_ranges(url, retries) as stream:
            yield from _walk(url, stream)
    except OSError as error:
        raise UserError(f"shard {url}: cannot be read: {error}") from None


def _walk(url: str, stream: IO[bytes]) -> Iterator[tuple[str, int, int]]:
    try:
        tar = tarfile.open(fileobj=cast("IO[bytes]", _Headers(stream)), mode="r:")  # noqa: SIM115 (`stream` is closed)
        read = 0
        while (member := tar.next()) is not None:
            if tar.offset <= read:  # tarfile follows a negative size back, and forth again, without end
                raise tarfile.ReadError(f"the member at byte {member.offset} has a negative size")
            read = tar.offset
            tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header it has seen
            if member.isreg():
                yield member.name, member.offset_data, member.size
        stream.seek(tar.offset)
        end = stream.read(_BLOCK)
    except OSError:
        raise
    except Exception as error:  # tarfile's own, and whatever a header that lies makes it stumble over
        raise UserError(
            f"shard {url}: damaged, truncated or not a plain tar file (compressed ones cannot seek): {error}"
        ) from None
    if len(end) < _BLOCK or end.strip(b"\0"):  # tarfile stops in silence at a broken header and at a missing end mark
        raise UserError(f"shard {url}: damaged or truncated at byte {tar.offset}: fetch or write it again")


class _Headers:
    """A shard as tarfile may read it: it asks for as many bytes at once as a header says, and a header may say 8 EB."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        """At most _LONGEST_HEADER bytes; more are no file name and no pax record."""
        if not 0 <= size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._stream.read(size)


def _cache_paths(url: str, cache: str | None) -> list[Path]:
    """Where the index may lie, best place first."""
    absolute = url if is_remote(url) else os.path.abspath(local_path(url))
    name = f"{hashlib.sha256(absolute.encode()).hexdigest()[:16]}-{shard_name(url).split('?')[0]}.index.npz"
    if cache is not None:
        return [Path(cache).expanduser() / name]
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flexiclip" / name
    return [home] if is_remote(url) else [Path(local_path(url) + ".index.npz"), home]


def _load(path: Path, url: str, stamp: str) -> ShardIndex | None:
    try:
        data = read_npz(path)
        if int(data["version"]) != _VERSION or str(data["stamp"]) != stamp:
            return None
        arrays = {name: data[name] for name in ("key_bytes", "key_first", "first", "extension", "offset", "size")}
        index = ShardIndex(url=url, extensions=tuple(str(e) for e in data["extensions"]), **arrays)
        return index if _is_sound(index) else None
    except (OSError, ValueError, TypeError, KeyError):  # absent, of another version or damaged: it is written anew
        return None


def _is_sound(index: ShardIndex) -> bool:
    """Whether an index that came with its shard from elsewhere is one: arrays that fit each other, places inside the shard."""
    arrays: list[npt.NDArray[Any]] = [index.key_bytes, index.key_first, index.first, index.extension, index.offset, index.size]
    kinds = (np.uint8, np.uint32, np.uint32, np.uint16, np.int64, np.int64)
    if any(array.ndim != 1 or array.dtype != kind for array, kind in zip(arrays, kinds, strict=True)):
        return False
    members = len(index.size)
    if not len(index.key_first) == len(index.first) > 0 or not len(index.offset) == len(index.extension) == members:
        return False
    for ends, count in ((index.key_first, len(index.key_bytes)), (index.first, members)):
        if ends[0] != 0 or ends[-1] != count or (ends[1:] <= ends[:-1]).any():
            return False
    # Places past the shard's end are found when they are read; sums of larger numbers would wrap around.
    end = os.path.getsize(local_path(index.url)) if not is_remote(index.url) else _FARTHEST
    fits = (index.offset >= 0) & (index.size >= 0) & (index.offset <= end) & (index.size <= end - index.offset)
    return bool(fits.all() and (index.extension < len(index.extensions)).all())


def _save(path: Path, index: ShardIndex, stamp: str) -> bool:
    """Write and rename, so that a reader in another process never meets half a file. False where writing is not allowed."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            np.savez_compressed(
                file,
                version=_VERSION,
                stamp=stamp,
                extensions=np.array(index.extensions, dtype=np.str_),
                key_bytes=index.key_bytes,
                key_first=index.key_first,
                first=index.first,
                extension=index.extension,
                offset=index.offset,
                size=index.size,
            )
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        return False
    return True
