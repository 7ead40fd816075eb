"""The members of a tar file, one after the other, up to its end or to where it is damaged.

tarfile stops in silence at a broken header and at a missing end mark, follows what headers say to any size and place, and takes
zeros for an end: all of that is damage here, with a reason. It also takes some 50 us a header. Nearly every header of a shard is
of one plain kind, which is read here in a tenth of that; from the first other one on the file is tarfile's.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, NamedTuple, cast

BLOCK = 512
"""Bytes of a header, and what contents are padded to."""

_LONGEST_HEADER = 2**20  # bytes of a long name or of pax records
_LONGEST_END = 2**20  # bytes of zeros that writers put behind the end mark; GNU tar and Python's write 10 KB
_FARTHEST = 2**50  # bytes of any shard

# A header from its mode on: mode, owner, group, size, time, checksum, kind, link, magic, names, devices; the name has no prefix.
_PLAIN = re.compile(
    rb"[0-7]{7}\0[0-7]{7}\0[0-7]{7}\0([0-7]{11})\0[0-7]{11}\0([0-7]{6})\0 ([0x]).{172}(?:[0-7]{7}\0[0-7]{7}\0|\0{16})\0",
    re.DOTALL,
)
_AFTER_NAME, _CHECKSUM = 100, slice(148, 156)
_ADLER = 65521
_BLANK = 8 * ord(" ")  # what the checksum's own bytes count as
_TIME = re.compile(rb"(\d{1,3}) mtime=\d+(?:\.\d+)?\n")  # what webdataset writes before every header: a time in fractions


class Member(NamedTuple):
    """A regular file: where its content stands, in bytes, and the CRC-32 of the header block right before that."""

    name: str
    offset: int
    size: int
    header: int


class DamageError(Exception):
    """From here on the bytes are no tar file; the text says why. The last member before may be cut."""


def walk(stream: IO[bytes]) -> Iterator[Member]:
    """Every regular file of the tar file. Sparse files are left out: they do not stand in one piece.

    Raises DamageError where the rest cannot be read, OSError where reading itself fails.
    """
    offset = 0
    while (member := _plain_member(stream, offset)) is not None:
        yield member
        offset = member.offset + -(-member.size // BLOCK) * BLOCK
    stream.seek(offset)
    if stream.read(BLOCK) == bytes(BLOCK):
        _check_end(stream, offset)
    else:
        yield from walk_any(stream, offset)


def _plain_member(stream: IO[bytes], offset: int) -> Member | None:
    """The regular file whose header, or whose time, stands at `offset`; None when anything about it is out of the ordinary."""
    stream.seek(offset)
    block = stream.read(BLOCK)
    found = _plain_header(block)
    if found is not None and found[1] == b"x":
        record, block = stream.read(BLOCK), stream.read(BLOCK)
        time = _TIME.fullmatch(record, 0, found[0])
        if time is None or int(time[1]) != found[0]:
            return None
        offset += 2 * BLOCK
        found = _plain_header(block)
    if found is None or found[1] != b"0":
        return None
    name = block[:_AFTER_NAME].partition(b"\0")[0].decode(tarfile.ENCODING, "surrogateescape")
    return Member(name, offset + BLOCK, found[0], zlib.crc32(block))


def _plain_header(block: bytes) -> tuple[int, bytes] | None:
    """(size, kind) of a header block of the plain kind with a right checksum."""
    found = _PLAIN.match(block, _AFTER_NAME)
    if found is None or len(block) < BLOCK:
        return None
    # The low half of Adler-32 is 1 + the sum of the bytes, modulo a prime: a small part of the time of sum().
    counted = zlib.adler32(block[_CHECKSUM.stop :], zlib.adler32(block[: _CHECKSUM.start]))
    if counted % 2**16 != (1 + int(found[2], 8) - _BLANK) % _ADLER:
        return None
    return int(found[1], 8), found[3]


def walk_any(stream: IO[bytes], offset: int = 0) -> Iterator[Member]:
    """As walk, by tarfile, for the members whose headers begin at `offset`."""
    try:
        stream.seek(offset)
        tar = tarfile.open(fileobj=cast("IO[bytes]", _Bounded(stream)), mode="r:", tarinfo=_Header)  # noqa: SIM115 (by the caller)
    except OSError:
        raise
    except Exception as error:  # tarfile's own, and whatever a header that lies makes it stumble over
        where = f"at byte {offset}" if offset else "or not a plain tar file (compressed ones cannot seek)"
        raise DamageError(f"damaged, truncated {where}: {error}") from None
    try:
        yield from _files(tar, offset)
    except OSError:
        raise
    except Exception as error:
        raise DamageError(f"damaged or truncated at byte {tar.offset}: {error}") from None
    _check_end(stream, tar.offset)


def _files(tar: tarfile.TarFile, read: int) -> Iterator[Member]:
    while (member := cast("_Header | None", tar.next())) is not None:
        if tar.offset <= read:  # tarfile follows a negative size back, and forth again, without end
            raise tarfile.ReadError(f"the member at byte {member.offset} has a negative size")
        read = tar.offset
        tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header it has seen
        if member.isreg() and not member.issparse():
            yield Member(member.name, member.offset_data, member.size, member.crc)


def _check_end(stream: IO[bytes], offset: int) -> None:
    stream.seek(offset)
    mark = stream.read(BLOCK)
    if len(mark) < BLOCK or mark.strip(b"\0"):
        raise DamageError(f"damaged or truncated at byte {offset}: fetch or write it again")
    rest = stream.read(_LONGEST_END + 1)
    if rest.strip(b"\0"):
        raise DamageError(
            f"more data follows the end mark at byte {offset}: a tar file appended to another, or overwritten in part"
        )
    if len(rest) > _LONGEST_END:
        raise DamageError(f"nothing but zeros from byte {offset} on: written or fetched in part")


class _Header(tarfile.TarInfo):
    """A header that remembers the CRC-32 of its block, whatever pax or GNU headers stood before it."""

    crc = 0

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        """See tarfile."""
        header = super().frombuf(buf, encoding, errors)
        header.crc = zlib.crc32(buf)
        return header


class _Bounded:
    """A stream as tarfile may read it: it asks for as many bytes at once, and seeks as far, as a header says: 8 EB, perhaps."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.tell = stream.tell

    def seek(self, offset: int, whence: int = 0) -> int:
        """As a file's, within any shard."""
        if not 0 <= offset <= _FARTHEST:
            raise tarfile.ReadError(f"a header leads to byte {offset}")
        return self._stream.seek(offset, whence)

    def read(self, size: int) -> bytes:
        """At most _LONGEST_HEADER bytes; more are no file name and no pax record."""
        if not 0 <= size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._stream.read(size)
