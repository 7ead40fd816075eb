"""Files and folders that are whole or not there, whatever goes wrong while they are written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flexiclip.errors import UserError
from flexiclip.files import clear_left, link_folder, sync_folder, system_reason, write_whole


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize("fault", ["fsync", "replace"])
def test_write_whole_leaves_the_old_file_where_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    path = tmp_path / "latest"
    write_whole(path, "step-5\n")

    def fail(*_: object) -> None:
        assert names(tmp_path) == {"latest", f".latest.{os.getpid()}"}, "it is written aside"
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
