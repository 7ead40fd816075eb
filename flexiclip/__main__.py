"""`python -m flexiclip`, and the console script `flexiclip`."""

from __future__ import annotations

import codecs
import os
import sys
from contextlib import suppress
from typing import TextIO

from flexiclip.errors import RunError, UserError, one_line
from flexiclip.files import cannot_write, misplaced

BROKEN_PIPE = 141
"""The exit code when the reader of our output has gone (`| head`), as of a program that SIGPIPE ends."""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: done. 1: a run that cannot go on, told in one line on stderr, or a defect, with its traceback. 2: the user's mistake or a
    place that cannot be written to, told in one line on stderr. 130: interrupted by Ctrl-C. 141: the reader of our output has
    gone (`| head`); nothing is printed.
    """
    # OpenMP threads that spin at every barrier starve the data workers wherever cores are few or shared; must precede torch.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        _print_any_name()
        try:
            return _told(sys.argv[1:] if argv is None else argv)
        finally:
            _flush()  # after --help as well, which leaves by SystemExit
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):
            _drop(stream)
        return BROKEN_PIPE
    except UserError as error:  # of the flush
        return _say(str(error), 2)
    except KeyboardInterrupt:  # a second one, while the first was told
        return 130


def _told(argv: list[str]) -> int:
    """Run the command; what a user can do something about is one line on stderr."""
    try:
        from flexiclip.cli import run

        code = run(argv)
        _flush()
        return code
    except UserError as error:
        return _say(str(error), 2)
    except RunError as error:
        return _say(str(error), 1)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except Exception as error:
        line = _line_of(error)
        if line is None:
            raise
        return _say(one_line(line), 2)


def _line_of(error: Exception) -> str | None:
    """What to say of a file that cannot be written or opened where no command has said it; None for a defect of ours."""
    name = getattr(error, "filename", None)
    reason = cannot_write(error)
    if name is None:  # print gives no name
        return None if reason is None else f"the output cannot be written: {reason}"
    reason = reason or misplaced(error)
    ours = os.path.abspath(os.fsdecode(name)).startswith(os.path.dirname(__file__))
    return None if reason is None or ours else f"{os.fsdecode(name)}: {reason}"


def _say(line: str, code: int) -> int:
    print(f"flexiclip: {line}", file=sys.stderr)
    return code


def _print_any_name() -> None:
    """Let names that are not text in the terminal's encoding be printed: as the bytes that they are, or escaped."""
    codecs.register_error("flexiclip_names", _undecodable)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # not a file (a notebook, a test), or closed
            stream.reconfigure(  # type: ignore[union-attr]
                errors="flexiclip_names" if stream is sys.stdout else "backslashreplace"
            )


def _undecodable(error: UnicodeError) -> tuple[str | bytes, int]:
    """os.fsdecode's stand-ins for bytes as these bytes, every other character as an escape."""
    assert isinstance(error, UnicodeEncodeError)
    wrong = error.object[error.start : error.end]
    if all("\udc80" <= character <= "\udcff" for character in wrong):
        return bytes(ord(character) - 0xDC00 for character in wrong), error.end
    return codecs.backslashreplace_errors(error)


def _flush() -> None:
    """Write what is buffered. Raises UserError where that is impossible, and BrokenPipeError."""
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
    """Send what is still buffered nowhere, or the interpreter would complain of it at its end."""
    with suppress(AttributeError, OSError, ValueError):  # not a file of the system's
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # type: ignore[union-attr]
        os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main())
