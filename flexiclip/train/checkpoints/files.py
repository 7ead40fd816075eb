"""Files and folders that are whole or not there, whatever kills their writer."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flexiclip.errors import UserError
from flexiclip.files import replace_folder

_OS_ERROR = re.compile(r"(?:I/O error: )?([^:]+) \(os error \d+\)(?: at path .*)?$")  # how Rust, of safetensors, ends an OSError


@contextmanager
def writing_run_folder(folder: Path, *library: type[Exception]) -> Iterator[None]:
    """Raise UserError in place of an OSError for the run folder. library: errors of a library that mean the same."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, (OSError, *library)):
            raise
        raise UserError(f"run_dir={folder} cannot be written: {system_reason(error)}") from None


def clear_left(folder: Path, name: str) -> None:
    """Remove what a killed writer left aside. name: what it was writing, a glob. For the only process that writes there."""
    for left in folder.glob(f".{name}.*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Wait until all that a folder holds is on the disk. A network disk tells only here that it is full."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def link_folder(source: Path, target: Path) -> None:
    """Put a hard-linked copy of a folder in the place of another; a plain copy where links are not to be had."""
    clear_left(target.parent, target.name)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.copytree(source, aside, copy_function=os.link)
    except (OSError, shutil.Error):
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(source, aside)
    replace_folder(aside, target)


def system_reason(error: BaseException) -> str:
    """Why something could not be read or written, without the wrapping of the library that found out."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and (said := error.strerror or str(error)):
        return said
    wrapped = _OS_ERROR.search(str(error))
    return wrapped[1].strip() if wrapped else f"{type(error).__name__}: {error}"
