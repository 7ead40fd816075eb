"""Writes a shard: a plain tar file of samples, which appears under its name only when it is complete.

    with ShardWriter(Path("train-00000.tar")) as shard:
        shard.write("000000000", {"jpg": image, "txt": b"a caption", "json": b"{}"})

webdataset's writer lets tarfile make every header, which takes as long as reading a small image. All headers of a shard
differ only in the name, the size and the checksum, so they are filled into one template here. Equal samples give equal
bytes, whenever and by whomever they are written.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

BLOCK, RECORD = 512, 10_240  # bytes: tar files consist of blocks, and end at a multiple of a record
_NAME, _SIZE, _CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 156)
_LARGEST = 8**11 - 1  # bytes of a member: what the eleven octal digits of a header hold
_PARTS_AT_ONCE, _BYTES_AT_ONCE = 1000, 2**22  # collected for one call of writev; the system takes at most 1024 parts


def _template() -> bytes:
    """Return the header of an empty file without a name: mode 0444, as webdataset writes, no owner, and the time 0."""
    digits = b"0000444\0" + b"0000000\0" * 2 + b"00000000000\0" * 2
    kind_and_magic = b"0" + bytes(100) + b"ustar\x0000"
    return (bytes(100) + digits + b" " * 8 + kind_and_magic).ljust(BLOCK, b"\0")


_TEMPLATE = _template()
_BEFORE_SIZE, _AFTER_SIZE = _TEMPLATE[_NAME.stop : _SIZE.start], _TEMPLATE[_SIZE.stop : _CHECKSUM.start]
_AFTER_CHECKSUM = _TEMPLATE[_CHECKSUM.stop :]
_SUM = sum(_TEMPLATE) - sum(_TEMPLATE[_SIZE])


def header(name: str, size: int) -> bytes:
    """Return the header block of a regular file. Raises ValueError for a name of more than 100 bytes or a file of 8 GB."""
    path, digits = name.encode("utf-8", "surrogateescape"), b"%011o\0" % size
    if not 0 < len(path) <= _NAME.stop or not 0 <= size <= _LARGEST:
        raise ValueError(f"{name!r} of {size} bytes does not fit into a plain tar header")
    checksum = b"%06o\0 " % (_SUM + sum(path) + sum(digits))
    return path.ljust(_NAME.stop, b"\0") + _BEFORE_SIZE + digits + _AFTER_SIZE + checksum + _AFTER_CHECKSUM


class ShardWriter:
    """A shard that is being written, inside a `with` block. At its end it gets its name; after an exception nothing is left.

    Until then its file begins with a dot. A process that is killed leaves that file behind (see `files.clear_left`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.samples, self.bytes = 0, 0  # written so far
        self._aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        self._file: BinaryIO = self._aside.open("wb", buffering=0)
        self._parts: list[bytes] = []
        self._waiting = 0  # bytes in `_parts`
        self._discarded = False

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        try:
            if kind is None and not self._discarded:
                self._finish()
        finally:
            self._file.close()
            with suppress(FileNotFoundError):
                self._aside.unlink()

    def write(self, key: str, members: Mapping[str, bytes]) -> None:
        """Append one sample. `members` maps extensions to contents; equal keys must not follow each other."""
        for extension, content in members.items():
            size = len(content)
            self._add(header(f"{key}.{extension}", size))
            self._add(content)
            if size % BLOCK:
                self._add(bytes(BLOCK - size % BLOCK))
        self.samples += 1

    def _add(self, part: bytes) -> None:
        self._parts.append(part)
        self._waiting += len(part)
        if self._waiting >= _BYTES_AT_ONCE or len(self._parts) >= _PARTS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        """Write what was collected. Joining it first would touch as much new memory again, which takes longer than writing."""
        written = os.writev(self._file.fileno(), self._parts) if self._parts else 0
        if written < self._waiting:  # interrupted, or the disk is full: then the next write raises
            rest = memoryview(b"".join(self._parts))[written:]
            while rest:
                rest = rest[self._file.write(rest) :]
        self.bytes += self._waiting
        self._parts, self._waiting = [], 0

    @property
    def final_bytes(self) -> int:
        """The size of the whole tar file if nothing more is written."""
        return -(-(self.bytes + self._waiting + 2 * BLOCK) // RECORD) * RECORD

    def discard(self) -> None:
        """Leave no file at the end of the block."""
        self._discarded = True

    def _finish(self) -> None:
        """Write the end mark, wait until everything is on the disk, and give the shard its name."""
        self._add(bytes(self.final_bytes - self.bytes - self._waiting))
        self._flush()
        os.fsync(self._file.fileno())
        os.replace(self._aside, self.path)
