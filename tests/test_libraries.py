"""Missing packages, and the errors and the noise of other libraries."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import types
import warnings

import pytest

from flexiclip.errors import UserError
from flexiclip.libraries import library_errors, not_installed, plain_logs, quiet, quiet_logs, require, short_reason


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


NOISE = """
import logging, sys, warnings
from flexiclip.libraries import plain_logs
plain_logs()
hub = logging.getLogger("a_hub.http")
logging.getLogger("a_hub").addHandler(logging.StreamHandler())  # as huggingface_hub does
logging.info("as open_clip does, which would add a handler to the root")
hub.warning("retrying")
logging.getLogger("another").warning("careful")
logging.getLogger("another").info("chatter")
logging.getLogger("another").error("broken")
for _ in range(2):
    warnings.warn("odd")
    warnings.simplefilter("default")  # after which Python would show it again
"""


@pytest.mark.parametrize(
    ("rank", "lines"), [("0", ["retrying", "careful", "broken", "<string>:13: UserWarning: odd"]), ("1", ["retrying", "broken"])]
)
def test_lines_of_other_libraries_appear_once_and_warnings_on_rank_0(rank: str, lines: list[str]) -> None:
    environment = {**os.environ, "RANK": rank}
    ran = subprocess.run([sys.executable, "-c", NOISE], capture_output=True, text=True, check=True, env=environment)
    assert ran.stderr.splitlines() == lines


def test_a_program_that_has_set_up_logging_keeps_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """As pytest has, whose handler is there already."""
    before = list(logging.getLogger().handlers)
    plain_logs()
    assert logging.getLogger().handlers == before
    logging.getLogger("another").warning("careful")
    assert capsys.readouterr().err == ""
