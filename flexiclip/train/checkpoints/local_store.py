"""Checkpoints in a local folder: written aside, and renamed when they are whole."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from flexiclip.errors import UserError
from flexiclip.files import write_whole
from flexiclip.train.checkpoints.checkpoint import STATE, Checkpoint, incomplete, open_checkpoint
from flexiclip.train.checkpoints.files import clear_left, link_folder, system_reason
from flexiclip.train.checkpoints.stores import LATEST, SPARE, checked_name, point_elsewhere, step_of
from flexiclip.train.processes.run_lock import FolderPlace, Place


class LocalStore:
    """See Store."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def check_writable(self) -> None:
        """See Store. Writes a small file and removes it."""
        probe = self.root / f".writable.{os.getpid()}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"checkpoints cannot be written to {self.root}: {system_reason(error)}: set train.checkpoint_dir"
            ) from None

    def latest(self) -> str | None:
        """See Store."""
        path = self.root / LATEST
        return checked_name(path.read_text(encoding="utf-8", errors="replace"), f"{path}") if path.is_file() else None

    def open(self, name: str, fetched: Path) -> Checkpoint:
        """See Store."""
        return open_checkpoint(self.root / name)

    def state(self, name: str) -> str:
        """See Store."""
        try:
            return (self.root / name / STATE).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise incomplete(f"{self.root / name}", str(error)) from None

    def aside(self, name: str) -> Path:
        """See Store. Beside the others, so that it can be renamed."""
        for written in ("step-*", LATEST):
            clear_left(self.root, written)
        return self.root / f".{name}.{os.getpid()}"

    def put(self, aside: Path, name: str) -> Path:
        """See Store."""
        folder = self.root / name
        if not (aside / STATE).is_file():  # somebody tidied up meanwhile
            raise FileNotFoundError(errno.ENOENT, f"{aside / STATE} is gone")
        if folder.exists():  # of a run that went on from an earlier checkpoint and came here once more
            if not point_elsewhere(self, name):
                link_folder(aside, self.root / f"{name}{SPARE}")
                self.point_to(f"{name}{SPARE}")
            self._hide(folder)
        aside.rename(folder)
        self.point_to(name)
        for spare in self.root.glob(f"step-*{SPARE}"):
            self.drop(spare.name)
        clear_left(self.root, name)
        return folder

    def point_to(self, name: str) -> None:
        """Write `latest`."""
        write_whole(self.root / LATEST, name + "\n")

    def drop(self, name: str) -> None:
        """See Store. Hidden first: a kill half-way leaves nothing that looks complete."""
        if (self.root / name).exists():
            shutil.rmtree(self._hide(self.root / name), ignore_errors=True)

    def steps(self) -> list[int]:
        """See Store."""
        return [
            step for path in self.root.glob("step-*") if (step := step_of(path.name)) is not None and (path / STATE).is_file()
        ]

    def claims(self) -> Place:
        """See Store."""
        return FolderPlace(self.root)

    def _hide(self, folder: Path) -> Path:
        hidden = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(hidden, ignore_errors=True)
        return folder.rename(hidden)
