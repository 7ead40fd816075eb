"""Where the index of a shard is kept, so that its headers are read once: beside it, in a named folder or in the user's cache.

A line of JSON, padded to 64 bytes, and behind it the arrays as they lie in memory: a run of 10,000 shards opens as many of these
before its first batch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from typing import Any

import numpy as np
import numpy.typing as npt

from flexiclip.data.shards import is_remote, local_path, shard_name

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
    name = f"{hashlib.sha256(absolute.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}-{shard_name(url).split('?')[0]}.index"
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
