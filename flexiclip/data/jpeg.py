"""How often a JPEG paints the picture: a progressive file of a megabyte may hold a hundred thousand scans, hours of decoding."""

from __future__ import annotations

import re

_START_OF_SCAN, _END = 0xDA, 0xD9
_BARE = (0x01, *range(0xD0, 0xD9))  # markers without a length: restarts and the start of the image
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # in coded data a 0xff of the data is followed by a zero


def more_scans_than(data: bytes, limit: int) -> bool:
    """Whether the JPEG file `data` has more than `limit` scans; those of thumbnails and of what follows its end do not count."""
    if data.count(b"\xff\xda") <= limit:  # nearly always; the walk below takes longer
        return False
    position, scans = 0, 0
    while scans <= limit:
        found = _MARKER.search(data, position)
        if found is None or found[1][0] == _END:
            return False
        position = found.end()
        if found[1][0] in _BARE:
            continue
        scans += found[1][0] == _START_OF_SCAN
        position += max(2, int.from_bytes(data[position : position + 2], "big"))
    return True
