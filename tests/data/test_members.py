"""Members of a shard that are too large to be read."""

from __future__ import annotations

import pytest

from flexiclip.data.index import Place
from flexiclip.data.members import read_members
from flexiclip.data.reading import Retries


def test_members_that_are_too_large_together_are_not_read() -> None:
    """Refused by their sizes alone: the shard is never opened."""
    places = {"jpg": Place(512, 2**27, 0), "txt": Place(2**30, 2**27 + 1, 0)}
    with pytest.raises(OSError, match="its members hold 268435457 bytes: too many to read"):
        read_members("/no/such.tar", places, Retries(1, 1))
