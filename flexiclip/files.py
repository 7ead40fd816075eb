"""Writing files for the user. A place that cannot be written to is one line that names it and the system's reason.

Libraries say the same in many ways: an OSError, Rust's "(os error 28)", the system's words somewhere in a RuntimeError of C++.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexiclip.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

# Nothing can be written there whoever asks: the disk is full or broken, the mount is read-only, a quota or a limit is reached.
_REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EACCES, errno.EPERM}
# The name is at fault: a file where a folder should be, a folder that is missing, a name that the file system does not take.
_MISPLACED = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENOTEMPTY,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EINVAL,
    errno.EILSEQ,
    errno.EBUSY,
    errno.ETXTBSY,
    errno.ESTALE,
}
_RUST = re.compile(r"\(os error (\d+)\)")
_TORCH = re.compile(r"PytorchStreamWriter failed writing")  # its C++ keeps no reason


def cannot_write(error: BaseException) -> str | None:
    """The reason, in a few words, when the error says that nothing more can be written there; None for every other error."""
    if isinstance(error, OSError) and error.errno in _REFUSED:
        return os.strerror(error.errno)
    if isinstance(error, OSError) and error.errno is not None:
        return None
    text = str(error)
    rust = _RUST.search(text)
    if rust is not None:
        return os.strerror(int(rust[1])) if int(rust[1]) in _REFUSED else None
    said = [os.strerror(number) for number in sorted(_REFUSED) if os.strerror(number) in text]
    return said[0] if said else "the file system took only a part of the file" if _TORCH.search(text) else None


def misplaced(error: BaseException) -> str | None:
    """The reason, in a few words, when the error says that a file's name is wrong; None for every other error."""
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno in _MISPLACED else None


@contextmanager
def writing(where: str) -> Iterator[None]:
    """Turn what goes wrong with a file that is written in this block into a UserError. where: `--output FILE`, for the line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = cannot_write(error) or misplaced(error)
        if reason is None:
            raise
        raise UserError(f"{where}: cannot write there: {reason}{_of_file(error)}") from None


def _of_file(error: BaseException) -> str:
    name: Any = getattr(error, "filename", None)
    told = isinstance(name, (str, bytes)) and not os.path.basename(os.fsdecode(name)).startswith(".")  # as what is written aside
    return f" ({os.fsdecode(name)})" if told else ""


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file completely or not at all: it is written under another name, synced and renamed. Text is encoded as UTF-8.

    A device or a pipe, such as /dev/stdout, is written to directly. Raises OSError, and then leaves the old file as it was.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        with suppress(OSError):
            aside.unlink()
        raise


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """An empty folder beside `output` to write into; it becomes `output` at the end of the block and is removed by an exception.

    So an interrupted build never looks complete. Raises UserError that names --output where nothing can be written.
    """
    target = Path(os.path.abspath(output))  # which has a name, and a folder beside it
    with writing(f"--output {output}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        with writing(f"--output {output}"):
            yield folder
            folder.chmod(0o755)
            folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def replace_folder(aside: Path, folder: Path) -> None:
    """Put the finished folder `aside` in the place of `folder`; a crash leaves the old or the new one, if only aside."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file. Raises OSError, as any other file does, where safetensors would raise an error of its own."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata)
    except SafetensorError as error:
        found = _RUST.search(str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from None
