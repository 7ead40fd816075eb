"""Naming shards.

A shard is a tar file given by a path or by any URL that fsspec knows (s3://, gs://, https://, memory://), which may stand behind
one of fsspec's caches: `filecache::s3://...` keeps a local copy of what it reads. A shell command (`pipe:COMMAND`) is let through
only where it is written out whole, as an entry of its own, in a recipe that allows it: what a brace range, a glob or a bucket's
listing yields is never one.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from flexiclip.data.remote import filesystem
from flexiclip.errors import UserError

PIPE = "pipe:"
SHELL = "shard {!r} would run a shell command: the recipe file must allow it with data.allow_shell: true"
"""What is said of a command that is not allowed."""

_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")
_MOST = 1_000_000  # shards of one pattern; a number that was mistyped would fill the memory with names
_CACHES = ("filecache", "simplecache", "blockcache")  # other links of a chain open archives, or run templates


def is_remote(url: str) -> bool:
    """Whether the shard is reached through fsspec rather than as a local file."""
    return "://" in url and not url.startswith("file://")


def local_path(url: str) -> str:
    """The path of a local shard, `file://` taken off."""
    return url.removeprefix("file://")


def expand_shards(spec: str | Sequence[str], *, allow_shell: bool = False) -> list[str]:
    """Every shard that brace ranges, globs, paths and URLs name: sorted, each once.

    spec: `train-{0000..0015}.tar`, `data/*.tar`, `s3://bucket/train-*.tar`, or a list of those.
    allow_shell: let an entry `pipe:COMMAND` through untouched; the command runs in a shell.
    Raises UserError for a local shard that does not exist, a glob that matches nothing, and an unwanted `pipe:`.
    """
    patterns = [spec] if isinstance(spec, str) else list(spec)
    if not patterns:
        raise UserError("no shards given: name at least one, for example 'data.train=data/train-{0000..0003}.tar'")
    return sorted({url for pattern in patterns for url in _expand(pattern, allow_shell)})


def _expand(pattern: str, allow_shell: bool) -> list[str]:
    import braceexpand

    if pattern.startswith(PIPE):
        if not allow_shell:
            raise UserError(SHELL.format(pattern))
        return [pattern]
    try:
        longest = max((abs(int(last) - int(first)) for first, last in _RANGE.findall(pattern)), default=0)
        urls = list(islice(braceexpand.braceexpand(pattern), _MOST + 1)) if longest < _MOST else []
    except ValueError as error:  # UnbalancedBracesError among them
        raise UserError(f"shards {pattern!r}: {error}") from None
    if longest >= _MOST or len(urls) > _MOST:
        raise UserError(f"shards {pattern!r}: its ranges name more than {_MOST:,} shards")
    return [shard for url in urls for shard in (_expand_remote(url) if is_remote(url) else _expand_local(local_path(url)))]


def _expand_local(path: str) -> list[str]:
    path = os.path.expanduser(path)
    if os.path.isfile(path):  # first, so that a file whose name holds a bracket is itself
        return [_plain(path)]
    if not glob.has_magic(path):
        kind = "a folder: name its shards, for example DIR/*.tar" if os.path.isdir(path) else "no such file"
        raise UserError(f"shard {path}: {kind}")
    found = glob.glob(path, recursive=True)
    if not found:
        raise UserError(f"shards {path}: the pattern matches no file (working folder {os.getcwd()})")
    return [_plain(shard) for shard in found]


def _plain(path: str) -> str:
    """The path, spelled so that nobody takes a file for a command by its name."""
    return os.path.join(os.curdir, path) if path.startswith(PIPE) else path


def _expand_remote(url: str) -> list[str]:
    _check_chain(url)
    # `?` is a wildcard in a path but the query mark of a web address.
    if not any(mark in url for mark in ("*[" if url.startswith("http") else "*?[")):
        return [url]
    chain, separator, target = url.rpartition("::")  # filecache::s3://...: list the target, read through the chain
    fs, path = filesystem(target)
    found = [chain + separator + str(fs.unstrip_protocol(p)) for p in fs.glob(path)]
    if not found:
        raise UserError(f"shards {url}: the pattern matches nothing")
    for shard in found:
        _check_chain(shard)
    return found


def _check_chain(url: str) -> None:
    """fsspec takes `A::B` for A reading through B, in an object's name too: only caches may stand before the target."""
    *caches, target = url.split("::")
    if any(cache.removesuffix("://") not in _CACHES for cache in caches) or target.lstrip().startswith(PIPE):
        raise UserError(f"shard {url}: only {', '.join(_CACHES)} may stand before ::, and a URL after it")


def shard_name(url: str) -> str:
    """The shard's file name, for logs and reports."""
    return Path(local_path(url)).name
