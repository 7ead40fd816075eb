"""Members of a sample as bytes, in as few reads as pay, and only as long as they are those that were indexed.

A shard may be replaced between its index and a read. The header block right before a member's content comes with it in the same
read; its CRC-32, in the index, covers the member's name, size and time.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

from flexiclip.data.index import Place
from flexiclip.data.reading import Retries, read_range, reopen
from flexiclip.data.remote import is_remote
from flexiclip.data.tar_walk import BLOCK

_GAP = 2**20  # bytes of other members that are read along: a round trip costs more
_LARGEST = 2**28  # bytes of the members of a sample

_Run = list[tuple[str, Place]]


class ChangedError(OSError):
    """The shard is not the one that was indexed."""


def read_members(url: str, places: Mapping[str, Place], retries: Retries) -> dict[str, bytes]:
    """The contents, by name, in the order of `places`. Raises OSError, of which ChangedError is one."""
    total = sum(place.size for place in places.values())
    if total > _LARGEST:
        raise OSError(f"its members hold {total} bytes: too many to read")
    found: dict[str, bytes] = {}
    for run in _runs(places):
        found |= _read_run(url, run, retries)
    return {name: found[name] for name in places}


def _runs(places: Mapping[str, Place]) -> Iterator[_Run]:
    """The members that one read brings: a sample's members are neighbours, unless a large one that is not wanted lies between."""
    run: _Run = []
    end = 0
    for name, place in sorted(places.items(), key=lambda item: item[1].offset):
        if run and place.offset - end > _GAP:
            yield run
            run = []
        run.append((name, place))
        end = max(end, place.offset + place.size)
    if run:
        yield run


def _read_run(url: str, run: _Run, retries: Retries) -> dict[str, bytes]:
    start = run[0][1].offset - BLOCK
    size = max(place.offset + place.size for _, place in run) - start
    data = read_range(url, start, size, retries)
    if not _is_as_indexed(data, start, run) and not is_remote(url):
        reopen()  # the file that this process holds open may be an older one
        data = read_range(url, start, size, retries)
    if not _is_as_indexed(data, start, run):
        raise ChangedError("the shard has changed since it was indexed")
    return {name: data[offset - start : offset - start + size] for name, (offset, size, _) in run}


def _is_as_indexed(data: bytes, start: int, run: _Run) -> bool:
    return all(zlib.crc32(data[offset - BLOCK - start : offset - start]) == header for _, (offset, _, header) in run)
