"""The limits of docs/explanation/security.md, each asked for by a few bytes: what is above is refused before it is read."""

from __future__ import annotations

import struct
import tarfile
import zlib
from pathlib import Path

import pytest

from flexiclip.config import load
from flexiclip.data.images import ImageError, decode_image
from flexiclip.data.index import index_shard
from flexiclip.data.samples import BadSample, open_samples
from flexiclip.errors import UserError


def png(width: int, height: int, extra: bytes = b"") -> bytes:
    """The beginning of a PNG that says how large it is, and has no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + extra + chunk(b"IDAT", b"")
    )


def test_decode_image_refuses_the_first_picture_above_2_to_the_26_pixels() -> None:
    with pytest.raises(ImageError, match="8193 x 8192 exceeds 67108864 pixels"):
        decode_image(png(8193, 8192))
    with pytest.raises(ImageError) as within:
        decode_image(png(8192, 8192))
    assert "exceeds" not in str(within.value), "the largest is decoded, and only then found to have no pixels"


def test_a_sample_above_256_mb_is_refused_unread(tmp_path: Path) -> None:
    """A sparse file: the member of 2^28 bytes and one more takes no room, and reading it would take 256 MB."""
    path = tmp_path / "x.tar"
    info = tarfile.TarInfo("s.txt")
    info.size = 2**28 + 1
    with path.open("wb") as file:
        file.write(info.tobuf())
        file.truncate(512 + 2**28 + 512 + 1024)
    assert len(index_shard(str(path))) == 1
    store = open_samples([str(path)], ("jpg",), ("txt",), str(tmp_path / "cache"))
    with pytest.raises(BadSample, match="hold 268435457 bytes: too many to read"):
        store[0]


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_tar_header_above_1_mb_is_damage(kind: bytes, tmp_path: Path) -> None:
    for length, damaged in ((2**20 + 1, True), (2**20, False)):
        record = b"%d comment=" % length
        content = b"a" * length if kind == tarfile.GNUTYPE_LONGNAME else record + b"x" * (length - len(record) - 1) + b"\n"
        path = tmp_path / f"{length}.tar"
        with path.open("wb") as file:
            info = tarfile.TarInfo("././@LongLink")
            info.type, info.size = kind, len(content)
            file.write(info.tobuf() + content + bytes(-len(content) % 512))
            sample = tarfile.TarInfo("good.txt")
            sample.size = 3
            file.write(sample.tobuf() + b"fox" + bytes(509) + bytes(1024))
        index = index_shard(str(path))
        assert ("a header of 1049088 bytes" in index.damage) == damaged, "in blocks of 512"
        assert (index.damage == "") == (not damaged)


def test_yaml_stands_for_4_million_characters_and_no_more(tmp_path: Path) -> None:
    """An alias of a text of 100 kB: forty of them are within the limit, and then fail as what they are; fifty are not read."""
    path = tmp_path / "r.yaml"
    for copies, message in ((50, "with its aliases"), (35, "eval")):
        path.write_text("eval:\n  a: &t " + "x" * 100_000 + "\n  b: [" + ", ".join(["*t"] * copies) + "]\n")
        with pytest.raises(UserError, match=message):
            load(path)


def test_the_names_of_special_formats_are_not_decoded() -> None:
    """EPS, PDF and their like start programs or bring interpreters along."""
    for content in (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"%PDF-1.4\n",
        b"\xd7\xcd\xc6\x9a" + bytes(40),
        b"<svg/>",
    ):
        with pytest.raises(ImageError, match="cannot identify"):
            decode_image(content)
