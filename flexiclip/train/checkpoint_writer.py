"""Writes checkpoints while training goes on: one thread, one checkpoint at a time.

A write that fails is said at once and the run goes on, for the next one may succeed; the one that a run ends with must succeed.
Whatever was written of a checkpoint that failed is removed, so that a full disk is no fuller than before.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from flexiclip.errors import RunError
from flexiclip.files import link_folder, system_reason
from flexiclip.train.checkpoint import Snapshot, write_checkpoint
from flexiclip.train.stores import Store, expendable


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the newest few, and the first of every so many steps."""

    last: int
    every: int | None


class CheckpointWriter:
    """Only the main rank has one. say: prints a line, from any thread. newest: the checkpoint that the run went on from."""

    def __init__(self, store: Store, run: Path, keep: Keep, say: Callable[[str], None], newest: str | None) -> None:
        self.store, self.run, self.keep, self.say, self.newest = store, run, keep, say, newest
        self._thread: Thread | None = None

    def write(self, snapshot: Snapshot) -> None:
        """Begin to write, when the one before is written. What fails is said. The snapshot's tensors must be its own."""
        self.wait()
        self._thread = Thread(target=self._write_and_say, args=(snapshot,), name="writes a checkpoint", daemon=True)
        self._thread.start()

    def write_last(self, snapshot: Snapshot) -> None:
        """Write the checkpoint that the run ends with, unless it has just been written. Raises RunError."""
        self.wait()
        if self.newest != snapshot.name:
            self._write(snapshot)

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write_and_say(self, snapshot: Snapshot) -> None:
        try:
            self._write(snapshot)
        except RunError as error:
            self.say(f"{error}")

    def _write(self, snapshot: Snapshot) -> None:
        """Raises RunError with the reason; each backend of a remote store has exceptions of its own."""
        name = snapshot.name
        aside: Path | None = None
        try:
            aside = self.store.aside(name)
            write_checkpoint(aside, snapshot)
            written = self.store.put(aside, name)
        except Exception as error:
            self._remove(aside, snapshot)
            stays = f"{self.newest} stays the newest" if self.newest else "there is no earlier one"
            raise RunError(f"checkpoint {name} could not be written: {system_reason(error)}: {stays}") from error
        self.newest = name
        try:
            link_folder(written / "model", self.run / "model")
            for step in expendable(self.store.steps(), snapshot.facts.step, self.keep.last, self.keep.every):
                self.store.drop(f"step-{step}")
        except Exception as error:
            raise RunError(f"checkpoint {name} is written, but not {self.run / 'model'}: {system_reason(error)}") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)  # there still when the store is remote

    def _remove(self, aside: Path | None, snapshot: Snapshot) -> None:
        """What was written of a checkpoint that failed; not a complete one of the same name that stood there before."""
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
        try:
            if snapshot.facts.step not in self.store.steps():
                self.store.drop(snapshot.name)
        except Exception:
            return  # unreachable as it was; the next upload to this name begins by removing what is there
