"""Where a run's checkpoints lie: a local folder, or any URL that fsspec knows (s3://, gs://, memory://, ...).

    ROOT/step-N/...    a checkpoint (checkpoint.py)
    ROOT/latest        the name of the newest complete one, as DeepSpeed writes it

A local folder is written aside and renamed when it is whole. Object stores have no rename: there state.json, with the sizes of
the other files, is uploaded after them. `latest` is replaced when either is done, so it never names a half-written one. Where a
checkpoint is written again, as by a run that went on from an earlier one, `latest` names another complete one meanwhile.

Checkpoints in a local folder: written aside, and renamed when they are whole.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from flexiclip.errors import UserError
from flexiclip.files import clear_left, link_folder, system_reason, write_whole
from flexiclip.train.checkpoint import STATE, Checkpoint, incomplete, open_checkpoint
from flexiclip.train.run_lock import FolderPlace, Place

LATEST = "latest"
SPARE = ".new"
"""Ends the name of a second copy of a checkpoint, complete too, which is there while the only one of its step is replaced."""
_NAME = re.compile(r"step-([0-9]{1,15})")


class Store(Protocol):
    """Checkpoints by the name of their folder. str(store) is what a person would write for it."""

    def check_writable(self) -> None:
        """Raises UserError when nothing can be written: a run that cannot save had better not start."""
        ...

    def latest(self) -> str | None:
        """The name of the newest complete checkpoint. Raises UserError when the store cannot be used."""
        ...

    def open(self, name: str, fetched: Path) -> Checkpoint:
        """A checkpoint; its files in the folder `fetched` when they do not lie on a disk already. Raises UserError."""
        ...

    def state(self, name: str) -> str:
        """The text of a checkpoint's state.json. Raises UserError."""
        ...

    def aside(self, name: str) -> Path:
        """A new local folder's path, to write the checkpoint into; what an earlier writer left there is gone."""
        ...

    def point_to(self, name: str) -> None:
        """Let `latest` name it."""
        ...

    def put(self, aside: Path, name: str) -> Path:
        """Take in a written folder and make it the latest. Returns a local folder with its files."""
        ...

    def drop(self, name: str) -> None:
        """Remove a checkpoint, or what was written of it."""
        ...

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints."""
        ...

    def claims(self) -> Place:
        """Where a run says that it writes here (run_lock.py)."""
        ...


def expendable(steps: Sequence[int], step: int, keep_last: int, keep_every: int | None) -> list[int]:
    """Which of `steps` may go once `step` is written: all but the last few, and the first of each `keep_every` steps.

    Those beyond `step` belong to a run that was taken up again from an earlier checkpoint; they stay until they are overwritten.
    """
    mine = sorted(s for s in steps if s <= step)
    kept = set(mine[-keep_last:])
    if keep_every is not None:
        first: dict[int, int] = {}
        for s in mine:
            first.setdefault(s // keep_every, s)
        kept |= {s for period, s in first.items() if period > 0}
    return [s for s in mine if s not in kept]


def point_elsewhere(store: Store, name: str) -> bool:
    """Let `latest` name an earlier checkpoint before `name` is replaced, so that a kill leaves a good one.

    False where it names this one and there is no earlier one: then the new one must be whole, as SPARE, before this one goes.
    """
    if store.latest() != name:
        return True
    step = step_of(name)
    earlier = [each for each in store.steps() if step is not None and each < step]
    if earlier:
        store.point_to(f"step-{max(earlier)}")
    return bool(earlier)


def checked_name(text: str, where: str) -> str:
    """The name in a `latest` file. Raises UserError when it is none."""
    if step_of(text.strip().removesuffix(SPARE)) is None:  # it becomes a path
        raise UserError(
            f"{where} names {text.strip()[:40]!r}, which is no checkpoint: write the name of one into it, such as step-100"
        )
    return text.strip()


def step_of(name: str) -> int | None:
    """The step in the name of a checkpoint's folder; None for another name."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


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
