"""Where the index of a shard is kept, so that its headers are read once: beside it, in a named folder or in the user's cache."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flexiclip.arrays import read_npz
from flexiclip.data.shards import is_remote, local_path, shard_name

_VERSION = 2  # of the layout
_FARTHEST = 2**50  # bytes of a shard

Arrays = dict[str, npt.NDArray[Any]]
DTYPES = {
    "key_bytes": np.uint8,
    "key_first": np.uint32,
    "first": np.uint32,
    "extension": np.uint16,
    "offset": np.int64,
    "size": np.uint32,
    "header": np.uint32,
}
"""The arrays of an index, see index.py."""


def cache_paths(url: str, cache: str | None) -> list[Path]:
    """Where the index may lie, best place first."""
    absolute = url if is_remote(url) else os.path.abspath(local_path(url))
    name = f"{hashlib.sha256(absolute.encode()).hexdigest()[:16]}-{shard_name(url).split('?')[0]}.index.npz"
    if cache is not None:
        return [Path(cache).expanduser() / name]
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flexiclip" / name
    return [home] if is_remote(url) else [Path(local_path(url) + ".index.npz"), home]


def load_arrays(path: Path, url: str, stamp: str) -> tuple[Arrays, tuple[str, ...], str] | None:
    """(arrays, extensions, damage) of the file; None when it is absent, of another shard or version, or no index."""
    try:
        data = read_npz(path)
        if int(data["version"]) != _VERSION or str(data["stamp"]) != stamp:
            return None
        arrays = {name: data[name] for name in DTYPES}
        extensions = tuple(str(e) for e in data["extensions"])
        return (arrays, extensions, str(data["damage"])) if _are_sound(arrays, len(extensions), url) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _are_sound(arrays: Arrays, extensions: int, url: str) -> bool:
    """Whether an index that came with its shard from elsewhere is one: arrays that fit each other, places inside the shard."""
    if any(array.ndim != 1 or array.dtype != DTYPES[name] for name, array in arrays.items()):
        return False
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


def save_arrays(path: Path, arrays: Arrays, extensions: tuple[str, ...], damage: str, stamp: str) -> bool:
    """Write and rename, so that a reader in another process never meets half a file. False where writing is not allowed."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    named = np.array(extensions, dtype=np.str_)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            np.savez_compressed(file, version=_VERSION, stamp=stamp, damage=damage, extensions=named, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        return False
    return True
