"""Safe writing of files and folders, and short explanations of why a file cannot be written or read.

`write_whole`, `new_folder` and `link_folder` write under another name and then rename the result. So the file or folder
is complete or missing, no matter when the writer is killed.

A place that cannot be written to is reported in one line that names it and the system's reason. Libraries report this in
many ways: as an OSError, as Rust's "(os error 28)", or with the system's words inside a RuntimeError from C++.

`within` limits the time of a call that may hang, such as a question to a server.

A file that cannot be read is often a failed download: a web page with an error, a Git LFS pointer, an archive, or an
empty file. `found_instead` and `text_instead` recognise these.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from flexiclip.errors import UserError
from flexiclip.libraries import short_reason

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

# No program can write there: the disk is full, broken or gone, the mount is read-only, or a quota or limit is reached.
_REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOTCONN, errno.EFBIG, errno.EACCES, errno.EPERM}
# The name is wrong: there is a file instead of a folder, a folder is missing, or the file system refuses the name.
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
_RUST = re.compile(r"\(os error (\d+)\)")  # an OSError in the words of a library that is written in Rust
_TORCH = re.compile(r"PytorchStreamWriter failed writing")  # torch's C++ code does not give the reason

_HEAD = 1024  # bytes of a file that `found_instead` reads
_SHOWN = 60  # characters of a text that `text_instead` quotes
_LFS = b"version https://git-lfs.github.com/spec/"
_PAGE = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"<error")
_AGAIN = "download the file again"
_BINARY = {
    b"\x1f\x8b": "it is a gzip archive; unpack it with gunzip",
    b"BZh": "it is a bzip2 archive; unpack it with bunzip2",
    b"\xfd7zXZ\0": "it is an xz archive; unpack it with unxz",
    b"\x28\xb5\x2f\xfd": "it is a zstd archive; unpack it with unzstd",
    b"\x89HDF": "it is an HDF5 file of Keras; take the weights for PyTorch",
}


def cannot_write(error: BaseException) -> str | None:
    """Return the reason in a few words if the error means that nothing more can be written there, else None."""
    if isinstance(error, OSError) and error.errno in _REFUSED:
        return os.strerror(error.errno)
    if isinstance(error, OSError) and error.errno is not None:
        return None
    text, number = str(error), _rust_errno(error)
    if number is not None:
        return os.strerror(number) if number in _REFUSED else None
    said = [os.strerror(number) for number in sorted(_REFUSED) if os.strerror(number) in text]
    return said[0] if said else "the file system took only a part of the file" if _TORCH.search(text) else None


def _rust_errno(error: BaseException) -> int | None:
    """The number of the system's error that the text of a Rust library ends with, or None if there is none."""
    found = _RUST.search(str(error))
    return int(found[1]) if found else None


def misplaced(error: BaseException) -> str | None:
    """Return the reason in a few words if the error means that a file's name is wrong, else None."""
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno in _MISPLACED else None


@contextmanager
def writing(where: str) -> Iterator[None]:
    """Turn errors about a file that is written inside this block into a UserError.

    `where` starts the message, for example `--output FILE`.
    """
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
    """Return the error's file name in parentheses, or "" if there is none or if it is that of a temporary file."""
    name: object = getattr(error, "filename", None)
    if not isinstance(name, (str, bytes)) or os.path.basename(os.fsdecode(name)).startswith("."):  # a temporary file
        return ""
    return f" ({os.fsdecode(name)})"


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file completely or not at all: write it under another name, sync it and rename it.

    A str is encoded as UTF-8. A device or a pipe, such as /dev/stdout, is written to directly. Raises OSError, which
    leaves an older file unchanged.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # hosts that share a folder may have equal process ids
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
def folder_aside(output: Path) -> Iterator[Path]:
    """Make an empty folder next to `output`, to write into, and remove it at the end of the block.

    What is complete is moved out of it inside the block. Raises UserError that names --output if nothing can be written
    there.
    """
    target = Path(os.path.abspath(output))  # an absolute path always has a name and a parent
    with writing(f"--output {output}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent)
    with writing(f"--output {output}"), aside as folder:
        yield Path(folder)


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Make an empty folder, to write into. It becomes `output` at the end of the block.

    After an exception there is no such folder, so an interrupted build never looks complete. Raises UserError that names
    --output if nothing can be written there.
    """
    with folder_aside(output) as aside:
        folder = aside / "folder"
        folder.mkdir(0o755)
        yield folder
        folder.rename(output)


def replace_folder(aside: Path, folder: Path) -> None:
    """Move the finished folder `aside` to `folder`, replacing an older one.

    After a crash, the old or the new folder still exists, possibly under its temporary name.
    """
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file. Raises OSError if it cannot be written, where safetensors would raise an error of its own."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata)
    except SafetensorError as error:
        number = _rust_errno(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from None


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def size_text(number: float) -> str:
    """Return a number of bytes in the largest fitting unit of 1000: "820 bytes", "4.1 MB", "1.2 GB"."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f} bytes"


def read_json(path: Path) -> dict[str, object]:
    """Read a file that holds a JSON object. Raises UserError if it cannot be read or holds something else."""
    try:
        data = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file: {found_instead(path) or short_reason(error)}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a JSON object, not a {type(data).__name__}")
    return data


def found_instead(content: bytes | Path) -> str | None:
    """Describe what a file contains in place of binary data or JSON, with the fix. Return None if the content may be right.

    `content` is a path or the first bytes. Text that is neither a web page nor a pointer is left to `text_instead`.
    """
    head = _head(content)
    if not head:
        return f"it is empty; {_AGAIN}"
    if head.startswith(_LFS):
        return "it is a Git LFS pointer; run `git lfs pull` in its repository, or download the file itself"
    if _text_of(head).lower().startswith(_PAGE):
        return f"it is a web page, as servers send with an error or for a login; {_AGAIN}"
    return next((said for magic, said in _BINARY.items() if head.startswith(magic)), None)


def text_instead(content: bytes | Path) -> str | None:
    """Return the result of `found_instead` or, for other text, its beginning. This is for formats that are never text."""
    head = _head(content)
    found = found_instead(head)
    if found is not None:
        return found
    text = _text_of(head)[:_SHOWN].decode("utf-8", errors="replace")
    if text.isascii() and all(c.isprintable() or c.isspace() for c in text) and text.strip():
        return f"it is a text that begins {text.strip()!r}; {_AGAIN}"
    return None


def _head(content: bytes | Path) -> bytes:
    if isinstance(content, bytes):
        return content[:_HEAD]
    with content.open("rb") as file:
        return file.read(_HEAD)


def _text_of(head: bytes) -> bytes:
    """Return the first bytes without a byte order mark and leading white space."""
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()


def clear_left(folder: Path, name: str) -> None:
    """Remove the temporary files and folders of a writer that was killed.

    `name` is what it was writing, and may be a glob pattern. Only the one process that writes there may call this.
    """
    for left in folder.glob(f".{name}.*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Wait until everything in a folder is on the disk. Some network disks report only at this point that they are full."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def link_folder(source: Path, target: Path) -> None:
    """Replace `target` by a hard-linked copy of the folder `source`, or by a plain copy if hard links are not possible."""
    clear_left(target.parent, target.name)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.copytree(source, aside, copy_function=os.link)
    except (OSError, shutil.Error):
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(source, aside)
    replace_folder(aside, target)


def system_reason(error: BaseException) -> str:
    """Return why something could not be read or written, without the wording that a library adds around the reason."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and (said := error.strerror or str(error)):
        return said
    number = _rust_errno(error)
    return f"{type(error).__name__}: {error}" if number is None else os.strerror(number)


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return the result of a blocking call, or raise its exception.

    Raises TimeoutError after `seconds`. The call goes on in its thread, which does not keep the process from ending.
    """
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, name="time limit", daemon=True).start()
    if not wait([answer], seconds).done:
        raise too_late(seconds)
    return answer.result()


def too_late(seconds: float) -> TimeoutError:
    """Return the error for a server that has not answered, or not completely, after so many seconds."""
    return TimeoutError(f"no answer, or not the whole of it, within {seconds:g} s")
