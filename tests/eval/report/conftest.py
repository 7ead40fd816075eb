"""A report that is written, and a disk that fills up."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from flexiclip_eval.report.files import write_report
from kit.reports import small_report

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """disk(room): after as many bytes in files of Path.write_bytes the disk is full; what fits is written, as a disk does."""

    def limit(room: int) -> None:
        write = Path.write_bytes
        left = [room]

        def limited(path: Path, data: bytes) -> int:
            written = write(path, data[: left[0]])
            left[0] -= written
            if written < len(data):
                raise FULL
            return written

        monkeypatch.setattr(Path, "write_bytes", limited)

    return limit


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of `small_report()`."""
    out = tmp_path_factory.mktemp("report") / "out"
    write_report(small_report(), out)
    return out
