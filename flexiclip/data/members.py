"""Reads the members of a sample with few reads, and checks that they are still the members that were indexed.

A shard may be replaced after it was indexed. Each read therefore includes the header block right before the member's
content. The index holds the CRC-32 of that block, which covers the member's name, size and time.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

from flexiclip.data.index import Place
from flexiclip.data.reading import Retries, read_range, reopen
from flexiclip.data.remote import is_remote
from flexiclip.data.tar_walk import BLOCK

_GAP = 2**20  # up to this many bytes of other members are read along, because a second round trip costs more
_LARGEST = 2**28  # bytes of the members of a sample

_Run = list[tuple[str, Place]]


class ChangedError(OSError):
    """The shard has changed since it was indexed."""


def read_members(url: str, places: Mapping[str, Place], retries: Retries) -> dict[str, bytes]:
    """Return the contents of the members by name, in the order of `places`.

    Raises OSError if they cannot be read, and its subclass ChangedError if the shard has changed.
    """
    total = sum(place.size for place in places.values())
    if total > _LARGEST:
        raise OSError(f"its members hold {total} bytes: too many to read")
    found: dict[str, bytes] = {}
    for run in _runs(places):
        found |= _read_run(url, run, retries)
    return {name: found[name] for name in places}


def _runs(places: Mapping[str, Place]) -> Iterator[_Run]:
    """Group the members into runs that are each read at once.

    The members of a sample are neighbors, so there is one run unless a large unwanted member is between them.
    """
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
    """Read one run and return the members' contents by name."""
    start = run[0][1].offset - BLOCK
    size = max(place.offset + place.size for _, place in run) - start
    data = read_range(url, start, size, retries)
    if not _is_as_indexed(data, start, run) and not is_remote(url):
        reopen()  # this process may hold an older file open
        data = read_range(url, start, size, retries)
    if not _is_as_indexed(data, start, run):
        raise ChangedError("the shard has changed since it was indexed")
    return {name: data[offset - start : offset - start + size] for name, (offset, size, _) in run}


def _is_as_indexed(data: bytes, start: int, run: _Run) -> bool:
    """Whether the header blocks of all members have the CRC-32 that the index holds."""
    return all(zlib.crc32(data[offset - BLOCK - start : offset - start]) == header for _, (offset, _, header) in run)
