"""Files and folders that are whole or not there, whatever goes wrong while they are written, and the reasons that are given."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.full_disk import at_most

from flexiclip.errors import UserError
from flexiclip.files import (
    cannot_write,
    clear_left,
    found_instead,
    link_folder,
    new_folder,
    replace_folder,
    save_tensors,
    sha256_of,
    size_text,
    sync_folder,
    system_reason,
    text_instead,
    write_whole,
    writing,
)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize("fault", ["fsync", "replace"])
def test_write_whole_leaves_the_old_file_where_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    path = tmp_path / "latest"
    write_whole(path, "step-5\n")

    def fail(*_: object) -> None:
        assert sorted(name.rpartition(".")[0] for name in names(tmp_path)) == ["", ".latest"], "it is written aside"
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, fault, fail)
        with pytest.raises(OSError, match="No space left"):
            write_whole(path, "step-10\n")
    assert path.read_text() == "step-5\n"
    assert names(tmp_path) == {"latest"}
    write_whole(path, b"step-10\n")
    assert path.read_text() == "step-10\n"


def test_sync_folder_waits_for_every_file_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model" / "tokenizer").mkdir(parents=True)
    for name in ("state.json", "model/weights", "model/tokenizer/words"):
        (tmp_path / name).write_text(name)
    synced: set[str] = set()
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.add(os.readlink(f"/proc/self/fd/{descriptor}")))
    sync_folder(tmp_path)
    assert synced == {str(tmp_path), *(str(path) for path in tmp_path.rglob("*"))}


@pytest.mark.parametrize("links", [True, False])
def test_link_folder_links_or_copies_over_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    source, target = tmp_path / "step-10" / "model", tmp_path / "model"
    for folder, files_in in ((source, ("weights", "config.yaml")), (target, ("weights", "old"))):
        folder.mkdir(parents=True)
        for name in files_in:
            (folder / name).write_text(f"{folder.parent.name}/{name}")
    (tmp_path / ".model.99999").mkdir()  # of a process that was killed
    if not links:

        def refuse(*_: object, **__: object) -> None:
            raise OSError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    link_folder(source, target)
    assert names(target) == {"weights", "config.yaml"}
    assert (target / "weights").read_text() == "step-10/weights"
    assert os.path.samefile(target / "weights", source / "weights") is links
    assert names(tmp_path) >= {"model", "step-10"}
    assert not [name for name in names(tmp_path) if name.startswith(".")]


def test_clear_left_removes_what_is_aside_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".latest.77").write_text("half")
    (tmp_path / ".step-6.77" / "model").mkdir(parents=True)
    for other in ("latest", "step-6", ".writable.77", ".latest"):
        (tmp_path / other).write_text("whole")
    for name in ("step-*", "latest"):
        clear_left(tmp_path, name)
    assert names(tmp_path) == {"latest", "step-6", ".writable.77", ".latest"}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("Error: I/O error: No space left on device (os error 28)"), "No space left on device"),
        (UserError("a line of ours"), "a line of ours"),
        (KeyError("bucket"), "KeyError: 'bucket'"),
    ],
)
def test_reason_is_what_a_person_wants_to_know(error: Exception, said: str) -> None:
    assert system_reason(error) == said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"\xef\xbb\xbf  <HTML lang=en>", "it is a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "it is a Git LFS pointer"),
        (gzip.compress(b"x", mtime=0), "it is a gzip archive"),
        (b"BZh91AY", "it is a bzip2 archive"),
        (b"\xfd7zXZ\0\0", "it is an xz archive"),
        (b"\x28\xb5\x2f\xfd\x00", "it is a zstd archive"),
        (b"\x89HDF\r\n", "it is an HDF5 file"),
    ],
)
def test_found_instead_names_it_with_what_to_do(content: bytes, said: str, tmp_path: Path) -> None:
    found = found_instead(content)
    assert found is not None
    assert found.startswith(said)
    assert "; " in found
    (tmp_path / "x").write_bytes(content)
    assert found_instead(tmp_path / "x") == text_instead(content) == found


@pytest.mark.parametrize(
    "content", [b'{"a": 1}', b"[PAD]\n[UNK]\n", b"#version: 0.2\n", b"PK\3\4", b"\x80\2}q\0", b"\x93NUMPY\1\0"]
)
def test_found_instead_leaves_what_may_be_real_alone(content: bytes) -> None:
    assert found_instead(content) is None


def test_text_instead_quotes_the_beginning_of_a_text_and_no_bytes() -> None:
    assert (
        text_instead(b"Not Found\n" + b"x" * 500)
        == "it is a text that begins " + repr("Not Found\n" + "x" * 50) + "; download the file again"
    )
    for content in (b"\x80\2}q\0", b"PK\3\4\0\0", bytes(range(256)), b" \n "):
        assert text_instead(content) is None


FULL, LIMIT = os.strerror(errno.ENOSPC), os.strerror(errno.EFBIG)


def test_writing_turns_refusals_of_every_library_into_a_line() -> None:
    for error in (
        OSError(errno.EDQUOT, "quota"),
        OSError(errno.EROFS, "read-only"),
        OSError(errno.EACCES, "denied"),
        OSError(errno.ENAMETOOLONG, "long"),
        RuntimeError(f"I/O error: {FULL} (os error {errno.ENOSPC})"),
        RuntimeError(f"[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/0: {FULL}"),
    ):
        with pytest.raises(UserError, match=r"^--output o: cannot write there: "), writing("--output o"):
            raise error
    for other in (
        ValueError("o"),
        RuntimeError("a shape (os error 2)"),
        UserError("mine"),
        OSError("of a library's own"),
        KeyError(28),
    ):
        assert cannot_write(other) is None
        with pytest.raises(type(other)) as caught, writing("--output o"):
            raise other
        assert caught.value is other


def test_new_folder_is_there_at_the_end_or_never(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a" / "b") as folder:
        (folder / "x").write_text("1")
        assert not (tmp_path / "a" / "b").exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o755
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "a" / "c"):
        raise KeyboardInterrupt
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_write_whole_replaces_and_writes_through(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    with at_most(2), pytest.raises(OSError, match=LIMIT):
        write_whole(tmp_path / "f", "newer")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("f", "old")]
    write_whole(tmp_path / "f", "newer")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("f", "newer")]
    write_whole(Path(os.devnull), "x")
    assert Path(os.devnull).is_char_device()


def test_save_tensors_raises_as_files_do(tmp_path: Path) -> None:
    with at_most(100), pytest.raises(OSError, match=LIMIT) as caught:
        save_tensors({"w": torch.zeros(100)}, tmp_path / "w.safetensors")
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path / "w.safetensors"))


class Killed(BaseException):
    """A process that ends between two operations on files."""


def kill_at(operation: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let an operation of os or shutil that changes names never happen, nor any after it. Returns what was asked for."""
    asked: list[str] = []

    def watch(module: Any, name: str) -> None:
        original = getattr(module, name)

        def counted(*args: Any, **options: Any) -> Any:
            asked.append(name)
            if len(asked) > operation:
                raise Killed
            return original(*args, **options)

        monkeypatch.setattr(module, name, counted)

    for module, name in ((os, "rename"), (os, "replace"), (os, "rmdir"), (os, "unlink"), (shutil, "rmtree")):
        watch(module, name)
    return asked


def test_replace_folder_keeps_the_old_folder_or_has_the_new_one_whenever_it_is_killed(tmp_path: Path) -> None:
    def contents(folder: Path) -> list[str] | None:
        return sorted(path.read_text() for path in folder.iterdir()) if folder.is_dir() else None

    old, new = ["old 1", "old 2"], ["new 1", "new 2"]
    finished = operation = 0
    while not finished:
        place = tmp_path / str(operation)
        folder, aside, left = place / "model", place / "aside", place / ".model.old"
        for path, texts in ((folder, old), (aside, new), (left, ["of an earlier crash"])):
            path.mkdir(parents=True)
            for text in texts:
                (path / text).write_text(text)
        with pytest.MonkeyPatch.context() as patch:
            asked = kill_at(operation, patch)
            try:
                replace_folder(aside, folder)
                finished = True
            except Killed:
                pass
        assert contents(folder) in (old, new) or (contents(folder) is None and contents(left) == old), asked
        assert new in (contents(folder), contents(aside)), asked
        operation += 1
    assert operation > 3, "there was something to kill"
    assert contents(folder) == new
    assert not left.exists()
    assert not aside.exists()


def test_sha256_of_a_file_that_exceeds_a_block(tmp_path: Path) -> None:
    content = bytes(range(256)) * 4096 * 3 + b"end"
    (tmp_path / "x").write_bytes(content)
    assert sha256_of(tmp_path / "x") == hashlib.sha256(content).hexdigest()
    (tmp_path / "x").write_bytes(b"")
    assert sha256_of(str(tmp_path / "x")) == hashlib.sha256(b"").hexdigest()


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (4_140_000, "4.1 MB"),
        (1.25e9, "1.2 GB"),
        (80e9, "80.0 GB"),
        (3e13, "30.0 TB"),
    ],
)
def test_size_text_has_the_largest_fitting_unit(number: float, said: str) -> None:
    assert size_text(number) == said
