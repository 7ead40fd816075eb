"""How the program ends: readers that go away, full outputs, names that are not text, Ctrl-C, files that cannot be opened."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import webdataset

from flexiclip import __main__ as program
from flexiclip import cli
from flexiclip.__main__ import main
from flexiclip.config import load
from flexiclip.errors import RunError, UserError

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1", "PYTHONUNBUFFERED": ""}
FLEXICLIP = [sys.executable, "-m", "flexiclip"]


def write_shard(folder: Path, name: str | bytes, samples: int = 3) -> str:
    """A shard of captions without images: every sample is bad."""
    path = os.path.join(os.fspath(folder), os.fsdecode(name))
    with open(path, "wb") as file, webdataset.TarWriter(file, encoder=False) as writer:
        for number in range(samples):
            writer.write({"__key__": f"sample-{number:05d}-{'x' * 60}", "txt": b"a thing"})
    return path


@pytest.mark.parametrize(
    "command", ["show-config debug", "data check many.tar", "data index many.tar", "--help", "show-config nonesuch"]
)
def test_a_reader_that_goes_away_is_a_quiet_exit(command: str, tmp_path: Path) -> None:
    """As under `| head -0`. A mistake is told on stderr, which goes to the pipe as well there."""
    write_shard(tmp_path, "many.tar", 400)
    reader, writer = os.pipe()
    os.close(reader)
    with open(tmp_path / "err", "wb") as err:
        both = {"stdout": writer, "stderr": writer if "nonesuch" in command else err}
        ran = subprocess.run([*FLEXICLIP, *command.split()], cwd=tmp_path, env=ENVIRONMENT, **both, check=False)
    os.close(writer)
    assert ran.returncode == program.BROKEN_PIPE == 128 + signal.SIGPIPE
    assert (tmp_path / "err").read_bytes() == b""


def test_standard_output_on_a_full_disk_is_one_line(tmp_path: Path) -> None:
    """More and less than what Python keeps in its buffer."""
    shard = write_shard(tmp_path, "many.tar", 400)
    for command in (["show-config", "debug"], ["data", "check", shard], ["data", "index", shard]):
        with open("/dev/full", "wb") as full:
            ran = subprocess.run(
                [*FLEXICLIP, *command], env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True, check=False
            )
        assert ran.returncode == 2
        (line,) = ran.stderr.splitlines()
        assert line.startswith("flexiclip: ")
        assert line.endswith(f"output cannot be written: {os.strerror(errno.ENOSPC)}")


def test_names_that_are_not_utf8_are_read_and_printed_as_they_are(tmp_path: Path) -> None:
    """In a folder, a shard, a sample's key and an override; on standard output the bytes themselves, on stderr escaped."""
    folder = tmp_path / os.fsdecode(b"f\xff")
    folder.mkdir()
    shard = write_shard(folder, b"t\xe9\xff.tar", 1)
    recipe = folder / os.fsdecode(b"r\xff.yaml")
    recipe.write_text("base: debug\nseed: 3\n")

    def run(*argv: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([*FLEXICLIP, *argv], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, check=False)

    index = run("data", "index", shard)
    assert (index.returncode, index.stderr) == (0, b"")
    assert index.stdout.splitlines()[0].endswith(os.fsencode(shard))
    check = run("data", "check", shard)
    assert check.returncode == 1
    assert b"f\\udcff/t\\udce9\\udcff.tar: sample-00000" in check.stdout
    shown = run("show-config", str(recipe), f"run_dir={folder}/#1 {chr(0xDCFE)}")
    assert (shown.returncode, shown.stderr) == (0, b"")
    (tmp_path / "shown.yaml").write_bytes(shown.stdout)
    assert load(tmp_path / "shown.yaml").run_dir == f"{folder}/#1 {chr(0xDCFE)}"
    assert load(tmp_path / "shown.yaml").seed == 3
    missing = run("data", "index", str(folder / "none.tar"))
    assert missing.returncode == 2
    assert missing.stderr.startswith(b"flexiclip: ")
    assert b"f\\udcff/none.tar" in missing.stderr
    words = run("data", "tokenizer", shard, "--output", str(folder / "words.model"), "--vocab-size", "20")
    assert words.returncode == 0, words.stderr
    assert (folder / "words.model").is_file()


def test_a_terminal_that_lacks_a_letter_gets_it_escaped(tmp_path: Path) -> None:
    ran = subprocess.run(
        [*FLEXICLIP, "show-config", "debug", "run_dir=/r/\u732b\u00e9"],
        env={**ENVIRONMENT, "PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert b"/r/\\u732b\xe9" in ran.stdout


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("a mistake"), 2, "a mistake"),
        (RunError("a lost rank"), 1, "a lost rank"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "full", "/x/y"), 2, f"/x/y: {os.strerror(errno.ENOSPC)}"),
        (OSError(errno.EROFS, "fixed", b"/x/\xff"), 2, f"/x/\\udcff: {os.strerror(errno.EROFS)}"),
        (OSError(errno.EDQUOT, "quota"), 2, f"the output cannot be written: {os.strerror(errno.EDQUOT)}"),
        (RuntimeError("I/O error (os error 28)"), 2, f"the output cannot be written: {os.strerror(errno.ENOSPC)}"),
        (IsADirectoryError(errno.EISDIR, "folder", "/x"), 2, f"/x: {os.strerror(errno.EISDIR)}"),
        (FileNotFoundError(errno.ENOENT, "none", "x"), 2, f"x: {os.strerror(errno.ENOENT)}"),
    ],
)
def test_main_tells_errors_in_one_line(
    error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "run", fails)
    assert main([]) == code
    assert capsys.readouterr() == ("", f"flexiclip: {line}\n")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a defect"),
        OSError("without a number"),
        ConnectionRefusedError(errno.ECONNREFUSED, "nobody"),
        FileNotFoundError(errno.ENOENT, "none", str(Path(program.__file__).parent / "gone.py")),
    ],
)
def test_main_keeps_the_traceback_of_a_defect(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "run", fails)
    with pytest.raises(type(error)) as caught:
        main([])
    assert caught.value is error


def test_main_gives_the_commands_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr(cli, "run", lambda argv: given.append(argv) or 7)
    monkeypatch.setattr(sys, "argv", ["flexiclip", "data", "check"])
    assert main() == 7
    assert main(["x"]) == 7
    assert given == [["data", "check"], ["x"]]


def test_output_that_is_no_file_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook's, or none at all, as under pythonw and cron."""
    for stream in (io.StringIO(), None):
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["show-config", "debug"]) == 0
    assert main(["show-config", "debug", "seed=3", "seed=4"]) == 2


def test_ctrl_c_leaves_with_one_line(tmp_path: Path) -> None:
    """While a set of pictures is drawn."""
    command = [*FLEXICLIP, "data", "cue-conflict", "--output", str(tmp_path / "o"), "--pixels", "400"]
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background job of a shell ignores it, and its children too
    started = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".o-*/*")):
        assert time.monotonic() < deadline
        assert started.poll() is None
        time.sleep(0.01)
    began = time.monotonic()
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert (started.returncode, out, err) == (130, "", "flexiclip: interrupted\n")
    assert not list(tmp_path.glob(".o-*")), "what is half built is removed"
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("command", [["--help"], ["train", "--help"], ["show-config", "debug"]])
def test_main_imports_no_large_library_for_help_and_show_config(command: list[str]) -> None:
    """docs/guides/performance.md."""
    large = ["torch", "numpy", "PIL", "deepspeed", "open_clip", "transformers", "timm", "matplotlib", "webdataset", "onnxruntime"]
    code = (
        "import sys\nfrom flexiclip.__main__ import main\n"
        f"try:\n    main({command!r})\nexcept SystemExit:\n    pass\n"
        f"print(*sorted({set(large)!r} & set(sys.modules)), file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert len(ran.stdout) > 100
    assert ran.stderr.split() == []
