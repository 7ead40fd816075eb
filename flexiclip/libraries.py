"""How this package deals with other libraries: importing optional ones, and their errors, warnings and progress bars."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import TextIO

from flexiclip.errors import UserError, one_line

_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|\\x1b\[[0-9;]*[A-Za-z]")
_ADDRESS = re.compile(r"<?([\w.]+) object at 0x[0-9a-fA-F]+>?")
_UNPICKLER = re.compile(r"WeightsUnpickler error: *(.*?)(?: Check the documentation | *$)")


def require(module: str, install: str, why: str) -> ModuleType:
    """Import an optional package and return it. Raises the error of `not_installed` if it cannot be imported."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise not_installed(module, install, why) from None


def not_installed(package: str, install: str, why: str) -> UserError:
    """Return the error for a missing Python package.

    `package` is its name, and `install` has the arguments of `pip install`, separated by spaces. `why` says what needs
    the package, and starts the message.
    """
    arguments = shlex.join(install.split())
    return UserError(f"{why}: the Python package {package} is not installed; run `pip install {arguments}`")


@contextlib.contextmanager
def library_errors(what: str, fix: str = "") -> Iterator[None]:
    """Turn every exception of another library inside this block into a UserError.

    Libraries check little of what they read, so bad input raises exceptions of any type. The message is `what`, the
    reason that the library gives, and `fix`. A UserError passes unchanged.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what}: {short_reason(error)}{fix}") from None


def short_reason(error: BaseException) -> str:
    """Return the text of a library's error, fit for use inside a message of ours.

    Escape codes and addresses of objects are removed, and so is a text that repeats itself.
    """
    text = " ".join(_ESCAPES.sub("", str(error)).split())
    inner = _UNPICKLER.search(text)
    text = _ADDRESS.sub(r"\1", inner[1] if inner else text).strip().removesuffix(".")
    half = len(text) // 2
    for cut in range(max(half - 2, 1), half + 3):  # "X: X", "X; X"
        first, second = text[:cut].strip(" :;,."), text[cut:].strip(" :;,.")
        if first and first == second:
            text = first
    return text or type(error).__name__


@contextlib.contextmanager
def quiet_logs() -> Iterator[None]:
    """Suppress logs up to the level of warnings inside this block."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the progress bars, warnings and logs of other libraries inside this block. Exceptions pass."""
    heard = io.StringIO()
    with quiet_logs(), warnings.catch_warnings(), contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard):
        warnings.simplefilter("ignore")
        yield


class _Plain(logging.Handler):
    """Prints warnings and errors on stderr, once and without a prefix.

    A library with a handler of its own prints its records itself. If the program that imports flexiclip has set up logging,
    this prints nothing.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging for every record that reaches the root."""
        others = [handler for handler in logging.getLogger().handlers if handler is not self]
        if not others and not _has_handler(record.name):
            print(self.format(record), file=sys.stderr, flush=True)


def _has_handler(name: str) -> bool:
    """Whether a logger or one above it, other than the root, has a handler."""
    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None and logger is not logging.getLogger():
        if logger.handlers:
            return True
        logger = logger.parent
    return False


_shown: set[str] = set()


def _show_once(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as one line, once, where Python prints the line of the source too, and again after a change of filters."""
    text = one_line(f"{filename}:{lineno}: {category.__name__}: {message}")
    if text not in _shown:
        _shown.add(text)
        print(text, file=sys.stderr, flush=True)


def _show_nothing(*_: object, **__: object) -> None:
    """Show no warning, on ranks whose warnings are those of rank 0."""


def plain_logs() -> None:
    """Set up logs and warnings for a command: each line appears once, and third-party warnings only on rank 0.

    Without a handler of the root, the first `logging.info` of a library adds one, which prints again what others print.
    A program that has set up logging keeps what it has.
    """
    root = logging.getLogger()
    main = os.environ.get("RANK", "0") == "0"
    if not root.handlers:
        root.addHandler(_Plain(logging.WARNING if main else logging.ERROR))
        warnings.showwarning = _show_once if main else _show_nothing
