"""Writes checkpoints while training goes on: one thread, one checkpoint at a time.

If writing a checkpoint fails, the run reports it at once and goes on, because the next one may succeed. Only the last checkpoint
of a run must succeed. A partly written checkpoint is removed, so that it does not fill a full disk further.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Thread

from flexiclip.errors import RunError
from flexiclip.files import link_folder, system_reason
from flexiclip.train.checkpoint import Snapshot, write_checkpoint
from flexiclip.train.stores import Store, expendable


class CheckpointWriter:
    """Writes a run's checkpoints. Only the main rank has a writer.

    keep: how many of the newest checkpoints are kept, and a period in steps: the first checkpoint in each is kept too, or None.
    say: prints a line, from any thread. newest: the name of the checkpoint that the run went on from, if there is one.
    """

    def __init__(
        self, store: Store, run: Path, keep: tuple[int, int | None], say: Callable[[str], None], newest: str | None
    ) -> None:
        self.store, self.run, self.keep, self.say, self.newest = store, run, keep, say, newest
        self._thread: Thread | None = None

    def write(self, snapshot: Snapshot) -> None:
        """Wait for the checkpoint before this one, then start to write this one in a thread, which reports a failure with `say`.

        The snapshot must own its tensors (Snapshot.owned), because training changes the model meanwhile.
        """
        self.wait()
        self._thread = Thread(target=self._write_and_say, args=(snapshot,), name="writes a checkpoint", daemon=True)
        self._thread.start()

    def write_last(self, snapshot: Snapshot) -> None:
        """Write the last checkpoint of the run, unless it has just been written. Raises RunError if that fails."""
        self.wait()
        if self.newest != snapshot.name:
            self._write(snapshot)

    def wait(self) -> None:
        """Wait until no checkpoint is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write_and_say(self, snapshot: Snapshot) -> None:
        try:
            self._write(snapshot)
        except RunError as error:
            self.say(f"{error}")

    def _write(self, snapshot: Snapshot) -> None:
        """Write a checkpoint, link its model into the run folder and remove old checkpoints. Raises RunError with the reason.

        Every Exception counts as a failure to write, because each backend of a remote store has its own exceptions.
        """
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
            for step in expendable(self.store.steps(), snapshot.facts.step, *self.keep):
                self.store.drop(f"step-{step}")
        except Exception as error:
            raise RunError(f"checkpoint {name} is written, but not {self.run / 'model'}: {system_reason(error)}") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)  # a remote store leaves the local copy there

    def _remove(self, aside: Path | None, snapshot: Snapshot) -> None:
        """Remove a partly written checkpoint, but not a complete one of the same name that existed before."""
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
        try:
            if snapshot.facts.step not in self.store.steps():
                self.store.drop(snapshot.name)
        except Exception:
            return  # the store is still unreachable; the next upload to this name first removes what is there
