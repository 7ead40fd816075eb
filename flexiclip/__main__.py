"""The entry point of `python -m flexiclip` and of the console script `flexiclip`."""

from __future__ import annotations

import codecs
import os
import sys
import time
from contextlib import suppress
from typing import TextIO

from flexiclip.errors import RunError, UserError, one_line
from flexiclip.files import cannot_write, misplaced

BROKEN_PIPE = 141
"""The exit code if the reader of the output has closed it (`| head`): that of a program which SIGPIPE ends."""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    `argv` is the list of arguments; the default is sys.argv without the program's name. The exit code is

        0    if the command succeeded,
        1    if a run cannot go on, which one line on stderr explains, or if flexiclip has a defect, with a traceback,
        2    if the user made a mistake or a file cannot be written, which one line on stderr explains,
        130  if the command was interrupted by Ctrl-C,
        141  if the reader of the output has closed it (`| head`); nothing is printed then.
    """
    # OpenMP threads that spin at barriers take CPU time from the data workers if cores are few or shared. This must be set
    # before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        _print_any_name()
        try:
            return _told(sys.argv[1:] if argv is None else argv)
        finally:
            _flush()  # also after --help, which raises SystemExit
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):
            _drop(stream)
        return BROKEN_PIPE
    except UserError as error:  # from _flush
        return _say(str(error), 2)
    except KeyboardInterrupt:  # a second Ctrl-C while the first one is reported
        return 130


def _told(argv: list[str]) -> int:
    """Run the command, and report every error that a user can fix as one line on stderr."""
    try:
        from flexiclip.cli import run

        code = run(argv)
        _flush()
        return code
    except (UserError, RunError) as error:
        code = 2 if isinstance(error, UserError) else 1
        if error.told is None:
            _let_rank_0_speak()
        return code if error.told else _say(str(error), code)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except Exception as error:
        line = _line_of(error)
        if line is None:
            raise
        return _say(one_line(line), 2)


def _let_rank_0_speak() -> None:
    """Wait, on other ranks than 0, for the launcher to end this one.

    Before the ranks have met, each finds the mistakes of the command line and the recipe itself. Rank 0 reports them at once,
    and its launcher then ends the other ranks. So only a mistake that rank 0 does not have is reported more than once.
    """
    if os.environ.get("RANK", "0") != "0":
        time.sleep(4.0 if os.environ.get("LOCAL_RANK", "0") == "0" else 5.0)


def _line_of(error: Exception) -> str | None:
    """Return the message for a file that could not be written or opened and that no command reported.

    The result is None for a defect of ours.
    """
    name = getattr(error, "filename", None)
    reason = cannot_write(error)
    if name is None:  # print() raises errors without a file name
        return None if reason is None else f"the output cannot be written: {reason}"
    reason = reason or misplaced(error)
    ours = os.path.abspath(os.fsdecode(name)).startswith(os.path.dirname(__file__))
    return None if reason is None or ours else f"{os.fsdecode(name)}: {reason}"


def _say(line: str, code: int) -> int:
    """Print one line on stderr and return the exit code."""
    print(f"flexiclip: {line}", file=sys.stderr)
    return code


def _print_any_name() -> None:
    """Allow printing names that the terminal's encoding cannot represent: as their original bytes, or escaped."""
    codecs.register_error("flexiclip_names", _undecodable)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # not a file (a notebook, a test), or closed
            stream.reconfigure(  # type: ignore[union-attr]
                errors="flexiclip_names" if stream is sys.stdout else "backslashreplace"
            )


def _undecodable(error: UnicodeError) -> tuple[str | bytes, int]:
    """Handle an error of encoding.

    It turns os.fsdecode's substitutes for bytes back into these bytes, and every other character into an escape.
    """
    assert isinstance(error, UnicodeEncodeError)
    wrong = error.object[error.start : error.end]
    if all("\udc80" <= character <= "\udcff" for character in wrong):
        return bytes(ord(character) - 0xDC00 for character in wrong), error.end
    return codecs.backslashreplace_errors(error)


def _flush() -> None:
    """Write buffered output. Raises UserError if it cannot be written, and BrokenPipeError if the reader has closed it."""
    for stream, name in ((sys.stdout, "standard output"), (sys.stderr, "standard error")):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            _drop(stream)
            raise UserError(f"{name} cannot be written: {error.strerror}") from None


def _drop(stream: TextIO | None) -> None:
    """Redirect what is still buffered to nowhere. Otherwise the interpreter would print a warning about it when it exits."""
    with suppress(AttributeError, OSError, ValueError):  # the stream is not a file of the operating system
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # type: ignore[union-attr]
        os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main())
