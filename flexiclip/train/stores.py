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
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from flexiclip.errors import UserError
from flexiclip.files import clear_left, link_folder, replace_folder, system_reason, write_whole
from flexiclip.train.checkpoint import STATE, Checkpoint, incomplete, open_checkpoint

LATEST = "latest"
SPARE = ".new"
"""Ending of the name of a second complete copy, which exists while the only checkpoint is being replaced."""
_NAME = re.compile(r"step-([0-9]{1,15})")


class Store(ABC):
    """A store of checkpoints, by folder name. str(store) is the folder or URL as a user writes it.

    All names of files and folders are relative to it.
    """

    @abstractmethod
    def names(self, folder: str = "") -> list[str]:
        """Return the names of what is in a folder of the store, as the server sees it now. Empty if there is no such folder."""

    @abstractmethod
    def read(self, file: str) -> bytes | None:
        """Return a small file. None if it does not exist. Raises UserError if the store cannot be used."""

    @abstractmethod
    def write(self, file: str, content: bytes) -> None:
        """Write a small file, so that it appears as a whole."""

    @abstractmethod
    def remove(self, file: str) -> None:
        """Remove a small file, if it exists."""

    @abstractmethod
    def open(self, name: str, fetched: Path) -> Checkpoint:
        """Return a checkpoint. A remote store first copies its files into the folder `fetched`. Raises UserError."""

    @abstractmethod
    def aside(self, name: str) -> Path:
        """Return the path of a new local folder to write the checkpoint into, and remove what an earlier writer left there."""

    @abstractmethod
    def copy_in(self, aside: Path, name: str) -> None:
        """Make a complete checkpoint of this name from a written folder, which stays as it is."""

    @abstractmethod
    def move_in(self, aside: Path, name: str) -> Path:
        """Make a complete checkpoint of this name from a written folder. Returns a local folder with its files."""

    @abstractmethod
    def drop(self, name: str) -> None:
        """Remove a checkpoint, complete or not, so that what is left after a kill does not look complete."""

    def check_writable(self) -> None:
        """Write a small file and remove it, so that a run that cannot save does not start. Raises what `write` raises."""
        self.write(".writable", b"a run that starts writes this, and removes it\n")
        self.remove(".writable")

    def latest(self) -> str | None:
        """Return the name of the newest complete checkpoint, if there is one. Raises UserError if the store cannot be used."""
        content = self.read(LATEST)
        if content is None:
            return None
        name = content.decode("utf-8", "replace").strip()
        if step_of(name.removesuffix(SPARE)) is None:  # checked because the name is used as a path
            raise UserError(f"{self}/{LATEST}: {name[:40]!r} is not a checkpoint: write a name such as step-100 into the file")
        return name

    def state(self, name: str) -> str:
        """Return the text of a checkpoint's state.json. Raises UserError."""
        content = self.read(f"{name}/{STATE}")
        if content is None:
            raise incomplete(f"{self}/{name}", f"it has no {STATE}")
        return content.decode("utf-8", "replace")

    def steps(self) -> list[int]:
        """Return the steps of all complete checkpoints."""
        return [step for name in self.names() if (step := step_of(name)) is not None and STATE in self.names(name)]

    def put(self, aside: Path, name: str) -> Path:
        """Move or upload a written folder into the store and make it the latest. Returns a local folder with its files."""
        if not (aside / STATE).is_file():  # another program has removed files meanwhile
            raise FileNotFoundError(errno.ENOENT, f"{aside / STATE} is gone")
        if self.latest() == name:  # from before the run was resumed from an earlier checkpoint
            earlier = [each for each in self.steps() if each < (step_of(name) or 0)]
            if not earlier:
                self.copy_in(aside, f"{name}{SPARE}")
            self._point_to(f"step-{max(earlier)}" if earlier else f"{name}{SPARE}")
        written = self.move_in(aside, name)
        self._point_to(name)
        for other in self.names():
            if other.endswith(SPARE) and step_of(other.removesuffix(SPARE)) is not None:
                self.drop(other)
        return written

    def _point_to(self, name: str) -> None:
        """Make `latest` name this checkpoint."""
        self.write(LATEST, f"{name}\n".encode())


def expendable(steps: Sequence[int], step: int, keep_last: int, keep_every: int | None) -> list[int]:
    """Return which of `steps` can be removed after `step` was written.

    Kept are the last `keep_last`, and the first one in each period of `keep_every` steps. Steps beyond `step` remain from a run
    that was resumed from an earlier checkpoint; they are kept until they are overwritten.
    """
    mine = sorted(s for s in steps if s <= step)
    kept = set(mine[-keep_last:])
    if keep_every is not None:
        first = {s // keep_every: s for s in reversed(mine)}
        kept |= {s for period, s in first.items() if period > 0}
    return [s for s in mine if s not in kept]


def step_of(name: str) -> int | None:
    """Return the step in the name of a checkpoint's folder. None for any other name."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


class LocalStore(Store):
    """The Store in a local folder, which writes checkpoints aside and renames them when they are complete."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def names(self, folder: str = "") -> list[str]:
        """Return the names in a folder, without hidden ones. A listing makes NFS ask the server again."""
        try:
            return [name for name in os.listdir(self.root / folder) if not name.startswith(".")]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def read(self, file: str) -> bytes | None:
        """Return a small file. Opening it makes NFS ask the server again."""
        try:
            return (self.root / file).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UserError(f"{self.root / file} cannot be read: {system_reason(error)}") from None

    def write(self, file: str, content: bytes) -> None:
        """Write a small file aside and rename it."""
        path = self.root / file
        path.parent.mkdir(exist_ok=True, parents=path.parent == self.root)  # a claim does not bring back a folder that is gone
        write_whole(path, content)

    def remove(self, file: str) -> None:
        """Remove a small file, with what a write that was cut short has left of it, and the folder after its last file."""
        path = self.root / file
        clear_left(path.parent, path.name)
        path.unlink(missing_ok=True)
        if path.parent != self.root:
            with suppress(OSError):
                path.parent.rmdir()

    def open(self, name: str, fetched: Path) -> Checkpoint:
        """Return a checkpoint. Its files are used where they are."""
        return open_checkpoint(self.root / name)

    def aside(self, name: str) -> Path:
        """Return the path of a new folder next to the checkpoints, so that it can be renamed."""
        for written in ("step-*", LATEST):
            clear_left(self.root, written)
        return self.root / f".{name}.{os.getpid()}"

    def copy_in(self, aside: Path, name: str) -> None:
        """Hard-link the files of a written folder."""
        link_folder(aside, self.root / name)

    def move_in(self, aside: Path, name: str) -> Path:
        """Rename a written folder. Returns its new path."""
        replace_folder(aside, self.root / name)
        return self.root / name

    def drop(self, name: str) -> None:
        """Remove a checkpoint. It is hidden first, so that what is left after a kill does not look complete."""
        folder, hidden = self.root / name, self.root / f".{name}.old"
        if folder.exists():
            shutil.rmtree(hidden, ignore_errors=True)
            folder.rename(hidden)
            shutil.rmtree(hidden, ignore_errors=True)
