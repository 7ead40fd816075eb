"""Arrays of an `.npz` file from anywhere: nothing unpickled, and never more memory than the file itself accounts for.

numpy.load allocates what an array's header declares before it reads, and inflates what a zip member holds: a file of a kilobyte
may ask for terabytes. Here an array must fit into its member, and the members must not be a bomb.
"""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_RATIO = 200  # of inflated to stored bytes, above which a file is a bomb; weights stand near 1
_HARMLESS = 2**24  # bytes that may inflate as they like


def read_npz(path: str | Path) -> dict[str, NDArray[Any]]:
    """The arrays of the file, by name without `.npy`. Raises OSError when there is none, ValueError when it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            inflated, stored = sum(member.file_size for member in members), Path(path).stat().st_size
            if inflated > _RATIO * stored + _HARMLESS:
                raise ValueError(f"{stored} bytes that would become {inflated}")
            found = {}
            for member in members:
                with archive.open(member) as stream:
                    found[member.filename.removesuffix(".npy")] = _read_array(stream, member.file_size, member.filename)
            return found
    except (OSError, ValueError):
        raise
    except Exception as error:  # zipfile, zlib and numpy's parser of headers each have errors of their own
        raise ValueError(f"{type(error).__name__}: {error}") from None


def read_npy(data: bytes) -> NDArray[Any]:
    """The array of a whole `.npy` file. Raises ValueError when it cannot be read."""
    try:
        return _read_array(io.BytesIO(data), len(data), "npy")
    except ValueError:
        raise
    except Exception as error:  # of numpy's parser of headers
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _read_array(stream: IO[bytes], size: int, name: str) -> NDArray[Any]:
    """The array in a stream of `size` bytes; name: for what is raised."""
    version = np.lib.format.read_magic(stream)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read_header is None:
        raise ValueError(f"{name}: an array file of version {version}")
    shape, by_columns, dtype = read_header(stream)
    if dtype.hasobject:
        raise ValueError(f"{name}: pickled objects, which are not read")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"{name}: an array of shape {shape} in {size} bytes")
    data = stream.read(math.prod(shape) * dtype.itemsize)
    return np.frombuffer(bytearray(data), dtype=dtype, count=math.prod(shape)).reshape(shape, order="F" if by_columns else "C")
