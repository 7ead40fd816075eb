"""Missing packages, and the errors and the noise of other libraries."""

from __future__ import annotations

import logging
import sys
import types
import warnings

import pytest

from flexiclip.errors import UserError
from flexiclip.libraries import library_errors, logged_once, not_installed, quiet, quiet_logs, require, short_reason


def test_require_imports_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("a_package")
    monkeypatch.setitem(sys.modules, "a_package", module)
    assert require("a_package", "flexiclip[hf]", "this") is module


@pytest.mark.parametrize(
    ("install", "command"),
    [
        ("flexiclip[hf]", "pip install 'flexiclip[hf]'"),
        ("timm", "pip install timm"),
        ("--no-deps gt-all==0.1.0", "pip install --no-deps gt-all==0.1.0"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    install: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "a_package", None)
    with pytest.raises(UserError) as error:
        require("a_package", install, "--format x")
    said = f"--format x: the Python package a_package is not installed; run `{command}`"
    assert str(error.value) == str(not_installed("a_package", install, "--format x")) == said


def test_library_errors_become_one_line() -> None:
    with (
        pytest.raises(UserError, match=r"^w\.bin: cannot be read: a b; download it again$"),
        library_errors("w.bin: cannot be read", "; download it again"),
    ):
        raise RuntimeError("a\n  b.")
    with pytest.raises(UserError, match=r"^as it is$"), library_errors("w.bin"):
        raise UserError("as it is")
    with pytest.raises(KeyboardInterrupt), library_errors("w.bin"):
        raise KeyboardInterrupt
    with library_errors("w.bin"):
        pass


def test_quiet_hides_output_warnings_and_logs(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with quiet():
            print("a bar")
            print("a bar", file=sys.stderr)
            warnings.warn("odd", stacklevel=1)
            logging.getLogger("library").warning("odd")
    with quiet_logs():
        logging.getLogger("library").warning("odd")
        logging.getLogger("library").error("an error")
        print("seen")
    logging.getLogger("library").warning("afterwards")
    assert capsys.readouterr().out == "seen\n"
    assert [record.message for record in caplog.records] == ["an error", "afterwards"]
    with pytest.raises(ValueError, match="x"), quiet():
        raise ValueError("x")
    assert logging.root.manager.disable == logging.NOTSET


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cannot identify image file <_io.BytesIO object at 0x7f3b5e841550>", "cannot identify image file _io.BytesIO"),
        ("\x1b[1mdo not\x1b[0m trust it", "do not trust it"),
        ("no such file: no such file", "no such file"),
        ("bad header; bad header.", "bad header"),
        ("one\n  two\n", "one two"),
        ("", "ValueError"),
        (
            "Weights only load failed.\nWeightsUnpickler error: Unsupported operand 149 \n\nCheck the documentation of x",
            "Unsupported operand 149",
        ),
        ("banana", "banana"),
    ],
)
def test_reason_is_a_part_of_a_line(text: str, said: str) -> None:
    assert short_reason(ValueError(text)) == said


def test_what_libraries_log_is_printed_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of the root logger, and one of a library that has a handler of its own; the root logger keeps no handler."""
    monkeypatch.setattr(logging.root, "handlers", [])  # pytest's
    own = logging.getLogger("their_library")
    handler = logging.StreamHandler(sys.stderr)
    own.addHandler(handler)
    try:
        with logged_once():
            logging.error("of the root")
            logging.getLogger("their_library.http").warning("of their own")
            logging.getLogger("another_library").warning("of another")
            logging.info("too quiet")
    finally:
        own.removeHandler(handler)
    assert sorted(capsys.readouterr().err.splitlines()) == ["of another", "of the root", "of their own"]
    assert logging.root.handlers == []
