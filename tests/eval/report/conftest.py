"""A report that is written, and a disk that fills up."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flexiclip_eval.report.files import write_report
from kit.reports import small_report

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """disk(room): after as many bytes in files that Path.open writes the disk is full; what fits is written, as a disk does."""

    def limit(room: int) -> None:
        opened = Path.open
        left = [room]

        def limited(path: Path, mode: str = "r", *arguments: Any, **named: Any) -> Any:
            file = opened(path, mode, *arguments, **named)
            if mode == "wb":
                write = file.write

                def until_full(data: bytes) -> int:
                    written = write(data[: left[0]])
                    left[0] -= written
                    if written < len(data):
                        raise FULL
                    return written

                file.write = until_full  # type: ignore[method-assign]
            return file

        monkeypatch.setattr(Path, "open", limited)

    return limit


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of `small_report()`."""
    out = tmp_path_factory.mktemp("report") / "out"
    write_report(small_report(), out)
    return out
