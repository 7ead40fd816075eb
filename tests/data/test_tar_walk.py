"""The fast walk over the headers of a tar file against tarfile, on whole shards and on damaged ones."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import webdataset
from kit.shards import good_sample

from flexiclip.data.tar_walk import DamageError, Member, walk, walk_any


def outcome(members: Iterator[Member]) -> tuple[list[Member], bool]:
    """The members, and whether damage ended them."""
    found = []
    try:
        for member in members:
            found.append(member)
    except DamageError:
        return found, True
    return found, False


@pytest.mark.parametrize("writer", ["webdataset", "pax", "gnu", "ustar"])
def test_headers_read_fast_are_tarfiles(tmp_path: Path, writer: str) -> None:
    """On whole shards and on such as are changed in a byte of a header: what tarfile alone finds, damage included."""
    path = tmp_path / "x.tar"
    if writer == "webdataset":
        with webdataset.TarWriter(str(path)) as tar:
            for sample in (good_sample(n) for n in range(3)):
                tar.write(sample)
    else:
        layout = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT, "ustar": tarfile.USTAR_FORMAT}[writer]
        with tarfile.open(path, "w", format=layout) as tar:
            for name, data in (("a.jpg", b"x" * 700), ("d/" * 60 + "b.txt", b"fox"), ("c.txt", b""), ("ü.txt", b"owl")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    content = path.read_bytes()
    assert outcome(walk(io.BytesIO(content))) == outcome(walk_any(io.BytesIO(content)))
    assert len(outcome(walk(io.BytesIO(content)))[0]) == (6 if writer == "webdataset" else 4)
    rng = random.Random(0)
    for _ in range(300):
        changed = bytearray(content)
        place = rng.randrange(len(content) // 512) * 512 + rng.choice(
            [0, 50, 101, 109, 124, 130, 135, 136, 150, 156, 257, 330, 345]
        )
        changed[place] = rng.choice(b"\0 07x5\x80\xff")
        if rng.random() < 0.7 and any(header := changed[place // 512 * 512 :][:512]):  # a lie with a right checksum
            header[148:156] = b" " * 8
            at = place // 512 * 512 + 148
            changed[at : at + 8] = b"%06o\0 " % sum(header)
        assert outcome(walk(io.BytesIO(changed))) == outcome(walk_any(io.BytesIO(changed))), place
