"""Lists the members of a tar file in order, up to its end or to where it is damaged.

tarfile stops silently at a broken header and at a missing end mark, follows a header to any size and place, and takes
zeros for the end of the file. Each of these counts as damage here and is reported with a reason.

tarfile also takes about 50 us per header. Nearly all headers of a shard are of one plain kind, which this module reads
in a tenth of that time. From the first header of another kind on, tarfile reads the file.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, NamedTuple, cast

BLOCK = 512
"""The size of a header in bytes. Contents are padded to a multiple of it."""

_LONGEST_HEADER = 2**20  # bytes of a long name or of pax records
_LONGEST_END = 2**20  # bytes of zeros after the end mark; GNU tar and Python's tarfile write 10 KB
_FARTHEST = 2**50  # the largest size of a shard, in bytes

# A header after its name: mode, owner, group, size, time, checksum, kind, link, magic, names, devices, and an empty name prefix.
_PLAIN = re.compile(
    rb"[0-7]{7}\0[0-7]{7}\0[0-7]{7}\0([0-7]{11})\0[0-7]{11}\0([0-7]{6})\0 ([0x]).{172}(?:[0-7]{7}\0[0-7]{7}\0|\0{16})\0",
    re.DOTALL,
)
_AFTER_NAME, _CHECKSUM = 100, slice(148, 156)
_ADLER = 65521
_BLANK = 8 * ord(" ")  # the checksum's own bytes are counted as spaces
_TIME = re.compile(rb"(\d{1,3}) mtime=\d+(?:\.\d+)?\n")  # webdataset writes this record before every header


class Member(NamedTuple):
    """A regular file of a tar file.

    `name`: its path, or in the index of a shard only the extension. `offset` and `size`: its content, in bytes. `header`:
    the CRC-32 of the header block right before the content.
    """

    name: str
    offset: int
    size: int
    header: int

    @property
    def end(self) -> int:
        """The offset right after the content."""
        return self.offset + self.size


class DamageError(Exception):
    """The bytes from here on are not a valid tar file. The text gives the reason. The member before may be cut off."""


def walk(stream: IO[bytes]) -> Iterator[Member]:
    """Yield every regular file of the tar file. Sparse files are left out, because their content is not in one piece.

    Raises DamageError if the rest cannot be read, and OSError if reading itself fails.
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
    """Return the regular file whose header, or the record of whose time, is at `offset`.

    Returns None if anything about the header is out of the ordinary.
    """
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
    """Return (size, kind) of a header block of the plain kind, or None if it is of another kind or its checksum is wrong."""
    found = _PLAIN.match(block, _AFTER_NAME)
    if found is None or len(block) < BLOCK:
        return None
    # The low half of Adler-32 is 1 + the sum of the bytes, modulo a prime. It takes a small part of the time of sum().
    counted = zlib.adler32(block[_CHECKSUM.stop :], zlib.adler32(block[: _CHECKSUM.start]))
    if counted % 2**16 != (1 + int(found[2], 8) - _BLANK) % _ADLER:
        return None
    return int(found[1], 8), found[3]


def walk_any(stream: IO[bytes], offset: int = 0) -> Iterator[Member]:
    """Like `walk`, but with tarfile, for the members whose headers begin at `offset`."""
    try:
        stream.seek(offset)
        tar = tarfile.open(fileobj=cast("IO[bytes]", _Bounded(stream)), mode="r:", tarinfo=_Header)  # noqa: SIM115 (by the caller)
    except OSError:
        raise
    except Exception as error:  # tarfile's own errors, and any other error that a wrong header causes in it
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
    """Yield the regular files that tarfile finds."""
    while (member := cast("_Header | None", tar.next())) is not None:
        if tar.offset <= read or member.size < 0:  # tarfile would follow a negative size back and forth without end
            raise tarfile.ReadError(f"the member at byte {member.offset} has a negative size")
        read = tar.offset
        tar.members = []  # type: ignore[attr-defined]  # otherwise tarfile would keep every header that it has read
        if member.isreg() and not member.issparse():
            yield Member(member.name, member.offset_data, member.size, member.crc)


def _check_end(stream: IO[bytes], offset: int) -> None:
    """Raise DamageError unless there is an end mark at `offset`, followed only by a limited number of zeros."""
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
    """A header that remembers the CRC-32 of its own block, even if pax or GNU headers precede it."""

    crc = 0

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        """Parse a header block as tarfile does, and keep its CRC-32."""
        header = super().frombuf(buf, encoding, errors)
        header.crc = zlib.crc32(buf)
        return header


class _Bounded:
    """A stream that limits what tarfile reads and seeks.

    tarfile reads as many bytes at once, and seeks as far, as a header says, which could be 8 EB.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.tell = stream.tell

    def seek(self, offset: int, whence: int = 0) -> int:
        """Seek like a file. Raises ReadError for an offset that no shard has."""
        if not 0 <= offset <= _FARTHEST:
            raise tarfile.ReadError(f"a header leads to byte {offset}")
        return self._stream.seek(offset, whence)

    def read(self, size: int) -> bytes:
        """Read at most _LONGEST_HEADER bytes. A longer header is neither a file name nor a pax record."""
        if not 0 <= size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._stream.read(size)
