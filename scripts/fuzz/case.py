"""Packs the input of a fuzz target, which is a few named files, so that an engine can treat it as one byte string.

--|recipe.yaml|--
base: base
--|base.yaml|--
seed: 1
"""

from __future__ import annotations

import re
from pathlib import Path

Case = dict[str, bytes]

_FRAME = re.compile(rb"--\|([A-Za-z0-9_]+(?:[./-][A-Za-z0-9_]+)*)\|--\n")  # a name can never lead out of the folder
_LONGEST_NAME = 80


def pack(case: Case) -> bytes:
    """Return the files in one byte string, in their order."""
    return b"".join(b"--|%s|--\n%s" % (name.encode(), content) for name, content in case.items())


def unpack(data: bytes) -> Case:
    """Return the files in a byte string. Any bytes are valid input; what comes before the first frame is dropped."""
    pieces = _FRAME.split(data)
    return {
        name.decode(): content for name, content in zip(pieces[1::2], pieces[2::2], strict=True) if len(name) <= _LONGEST_NAME
    }


def write(case: Case, folder: Path) -> None:
    """Write the files into a folder. A file is left out if a mutation gave it the name of a folder of another file."""
    for name, content in case.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue
