"""An input of a fuzz target: a few named files, framed so that an engine may treat them as one string of bytes.

--|recipe.yaml|--
base: base
--|base.yaml|--
seed: 1
"""

from __future__ import annotations

import re
from pathlib import Path

Case = dict[str, bytes]

_FRAME = re.compile(rb"--\|([A-Za-z0-9_]+(?:[./-][A-Za-z0-9_]+)*)\|--\n")  # never a way out of the folder
_LONGEST_NAME = 80


def pack(case: Case) -> bytes:
    """The files in one string, in their order."""
    return b"".join(b"--|%s|--\n%s" % (name.encode(), content) for name, content in case.items())


def unpack(data: bytes) -> Case:
    """The files of a string; what stands before the first frame belongs to none. Any bytes will do."""
    pieces = _FRAME.split(data)
    return {
        name.decode(): content for name, content in zip(pieces[1::2], pieces[2::2], strict=True) if len(name) <= _LONGEST_NAME
    }


def write(case: Case, folder: Path) -> None:
    """Put the files into a folder; one that a mutation named like a folder of another is left out."""
    for name, content in case.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue
