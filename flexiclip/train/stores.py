"""Where a run's checkpoints are kept: a local folder, or any URL that fsspec supports (s3://, gs://, memory://, ...).

    ROOT/step-N/...    a checkpoint (checkpoint.py)
    ROOT/latest        the name of the newest complete checkpoint, in the same format as DeepSpeed's

In a local folder (LocalStore), a checkpoint is written under another name and renamed when it is complete. Object stores
(RemoteStore in remote_store.py) cannot rename, so there state.json, with the sizes of the other files, is uploaded after them.
`latest` is replaced afterwards, so it never names an incomplete checkpoint. If a checkpoint is replaced, for example by a run
that went on from an earlier one, `latest` names another complete checkpoint meanwhile.
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
"""Ending of the name of a second complete copy, which exists while the only checkpoint is being replaced."""
_NAME = re.compile(r"step-([0-9]{1,15})")


class Store(Protocol):
    """The interface of a store of checkpoints, by folder name. str(store) is the folder or URL as a user writes it."""

    def check_writable(self) -> None:
        """Raise UserError if nothing can be written, so that a run that cannot save does not start."""
        ...

    def latest(self) -> str | None:
        """Return the name of the newest complete checkpoint, if there is one. Raises UserError if the store cannot be used."""
        ...

    def open(self, name: str, fetched: Path) -> Checkpoint:
        """Return a checkpoint. A remote store first copies its files into the folder `fetched`. Raises UserError."""
        ...

    def state(self, name: str) -> str:
        """Return the text of a checkpoint's state.json. Raises UserError."""
        ...

    def aside(self, name: str) -> Path:
        """Return the path of a new local folder to write the checkpoint into, and remove what an earlier writer left there."""
        ...

    def point_to(self, name: str) -> None:
        """Make `latest` name this checkpoint."""
        ...

    def put(self, aside: Path, name: str) -> Path:
        """Move or upload a written folder into the store and make it the latest. Returns a local folder with its files."""
        ...

    def drop(self, name: str) -> None:
        """Remove a checkpoint, complete or not."""
        ...

    def steps(self) -> list[int]:
        """Return the steps of all complete checkpoints."""
        ...

    def claims(self) -> Place:
        """Return the place where runs claim this store (run_lock.py)."""
        ...


def expendable(steps: Sequence[int], step: int, keep_last: int, keep_every: int | None) -> list[int]:
    """Return which of `steps` can be removed after `step` was written.

    Kept are the last `keep_last`, and the first one in each period of `keep_every` steps. Steps beyond `step` remain from a run
    that was resumed from an earlier checkpoint; they are kept until they are overwritten.
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
    """Make `latest` name an earlier checkpoint before `name` is replaced, so that a kill leaves a complete one.

    Returns False if `latest` names this checkpoint and there is no earlier one. Then the new one must be complete under its SPARE
    name before this one is removed.
    """
    if store.latest() != name:
        return True
    step = step_of(name)
    earlier = [each for each in store.steps() if step is not None and each < step]
    if earlier:
        store.point_to(f"step-{max(earlier)}")
    return bool(earlier)


def checked_name(text: str, where: str) -> str:
    """Return the name in the text of a `latest` file. Raises UserError if it is not the name of a checkpoint."""
    if step_of(text.strip().removesuffix(SPARE)) is None:  # checked because the name is used as a path
        raise UserError(
            f"{where} names {text.strip()[:40]!r}, which is no checkpoint: write the name of one into it, such as step-100"
        )
    return text.strip()


def step_of(name: str) -> int | None:
    """Return the step in the name of a checkpoint's folder. None for any other name."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


class LocalStore:
    """The Store in a local folder, which writes checkpoints aside and renames them when they are complete."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def check_writable(self) -> None:
        """Write a small file and remove it. Raises UserError if this fails."""
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
        """Return the name of the newest complete checkpoint, if there is one."""
        path = self.root / LATEST
        return checked_name(path.read_text(encoding="utf-8", errors="replace"), f"{path}") if path.is_file() else None

    def open(self, name: str, fetched: Path) -> Checkpoint:
        """Return a checkpoint. Its files are used where they are."""
        return open_checkpoint(self.root / name)

    def state(self, name: str) -> str:
        """Return the text of a checkpoint's state.json. Raises UserError."""
        try:
            return (self.root / name / STATE).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise incomplete(f"{self.root / name}", str(error)) from None

    def aside(self, name: str) -> Path:
        """Return the path of a new folder next to the checkpoints, so that it can be renamed."""
        for written in ("step-*", LATEST):
            clear_left(self.root, written)
        return self.root / f".{name}.{os.getpid()}"

    def put(self, aside: Path, name: str) -> Path:
        """Rename a written folder and make it the latest. Returns its new path."""
        folder = self.root / name
        if not (aside / STATE).is_file():  # another program has removed files meanwhile
            raise FileNotFoundError(errno.ENOENT, f"{aside / STATE} is gone")
        if folder.exists():  # from before the run was resumed from an earlier checkpoint
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
        """Remove a checkpoint. It is hidden first, so that what is left after a kill does not look complete."""
        if (self.root / name).exists():
            shutil.rmtree(self._hide(self.root / name), ignore_errors=True)

    def steps(self) -> list[int]:
        """Return the steps of all complete checkpoints."""
        return [
            step for path in self.root.glob("step-*") if (step := step_of(path.name)) is not None and (path / STATE).is_file()
        ]

    def claims(self) -> Place:
        """Return the place of the claims of runs that write here."""
        return FolderPlace(self.root)

    def _hide(self, folder: Path) -> Path:
        hidden = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(hidden, ignore_errors=True)
        return folder.rename(hidden)
