"""Checkpoints in an object store, or wherever else fsspec reaches: s3://, gs://, abfs://, memory://, ftp://, ...

An object appears whole or not at all, but a checkpoint is several. So state.json, which holds the sizes of the others, goes up
after them, and `latest` after that. Credentials and endpoints are the backend's affair: its environment variables, or fsspec's
configuration (FSSPEC_S3_ENDPOINT_URL, ~/.config/fsspec).
"""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from flexiclip.errors import UserError
from flexiclip.train.checkpoints.checkpoint import STATE, Checkpoint, incomplete, open_checkpoint, read_state
from flexiclip.train.checkpoints.files import reason
from flexiclip.train.checkpoints.stores import LATEST, checked_name, point_elsewhere, step_of

ANSWER_S = 60.0
"""Seconds after which a store that says nothing counts as unreachable: some backends try for minutes."""

T = TypeVar("T")


class RemoteStore:
    """See Store. Every file system of fsspec raises errors of its own, so any Exception counts as the store's."""

    def __init__(self, url: str, staging: Path) -> None:
        import fsspec

        self.url, self.staging = url.rstrip("/"), staging
        try:
            self.fs, self.root = fsspec.core.url_to_fs(self.url)
        except Exception as error:  # an unknown protocol, or one whose package is missing
            raise UserError(f"train.checkpoint_dir={url}: {error}") from None

    def __str__(self) -> str:
        return self.url

    def latest(self) -> str | None:
        """See Store."""
        text = self._asked(lambda: self._read(LATEST))
        return checked_name(text, f"{self.url}/{LATEST}") if text is not None else None

    def check_writable(self) -> None:
        """See Store. Writes a small object and removes it."""
        self._asked(self._probe)

    def open(self, name: str, fetched: Path) -> Checkpoint:
        """See Store. What lies in `fetched` already is not fetched again: state.json comes last here too."""
        where = f"{self.url}/{name}"
        if (fetched / STATE).is_file():
            return open_checkpoint(fetched, where)
        text = self.state(name)
        _, files = read_state(text, where)
        try:
            for file in files:
                (fetched / file).parent.mkdir(parents=True, exist_ok=True)
                self.fs.get_file(f"{self.root}/{name}/{file}", str(fetched / file))
            (fetched / STATE).write_text(text, encoding="utf-8")
        except Exception as error:
            raise incomplete(where, reason(error)) from None
        return open_checkpoint(fetched, where)

    def state(self, name: str) -> str:
        """See Store."""
        text = self._asked(lambda: self._read(f"{name}/{STATE}"))
        if text is None:
            raise incomplete(f"{self.url}/{name}", f"no {STATE}")
        return text

    def aside(self, name: str) -> Path:
        """See Store."""
        shutil.rmtree(self.staging, ignore_errors=True)
        return self.staging

    def put(self, aside: Path, name: str) -> Path:
        """See Store."""
        point_elsewhere(self, name)
        self.drop(name)  # what an interrupted upload, or an earlier life of the run, left there
        files = [path.relative_to(aside).as_posix() for path in aside.rglob("*") if path.is_file()]
        if STATE not in files:  # somebody tidied up meanwhile
            raise FileNotFoundError(errno.ENOENT, f"{aside / STATE} is gone")
        for file in sorted(files, key=lambda file: file == STATE):
            self._make_folder(f"{self.root}/{name}/{file}".rpartition("/")[0])
            self.fs.put_file(str(aside / file), f"{self.root}/{name}/{file}")
        self.point_to(name)
        return aside

    def point_to(self, name: str) -> None:
        """Write `latest`."""
        self.fs.pipe_file(f"{self.root}/{LATEST}", f"{name}\n".encode())

    def drop(self, name: str) -> None:
        """See Store. state.json first: a kill half-way leaves nothing that looks complete."""
        self.fs.invalidate_cache()
        for path in (f"{self.root}/{name}/{STATE}", f"{self.root}/{name}"):
            if self.fs.exists(path):
                self.fs.rm(path, recursive=True)

    def steps(self) -> list[int]:
        """See Store."""
        self.fs.invalidate_cache()
        if not self.fs.exists(self.root):  # no object yet
            return []
        names = [str(path).rstrip("/").rpartition("/")[2] for path in self.fs.ls(self.root, detail=False)]
        return [step for n in names if (step := step_of(n)) is not None and self.fs.exists(f"{self.root}/{n}/{STATE}")]

    def _read(self, file: str) -> str | None:
        try:
            return bytes(self.fs.cat_file(f"{self.root}/{file}")).decode("utf-8", "replace")
        except FileNotFoundError:
            return None

    def _make_folder(self, path: str) -> None:
        """For FTP and its like. Object stores, those that fsspec drives asynchronously, have none: s3fs would make a bucket."""
        if not self.fs.async_impl:
            self.fs.makedirs(path, exist_ok=True)

    def _probe(self) -> None:
        path = f"{self.root}/.writable"
        self._make_folder(self.root)
        self.fs.pipe_file(path, b"a run that starts writes this, and removes it\n")
        self.fs.rm_file(path)

    def _asked(self, question: Callable[[], T]) -> T:
        """The answer, or a UserError within ANSWER_S, however long the backend would try."""
        return within(ANSWER_S, question, lambda why: UserError(f"checkpoints at {self.url} cannot be reached: {why}"))


def within(seconds: float, question: Callable[[], T], failed: Callable[[str], Exception]) -> T:
    """What `question` returns; failed(why) is raised when it raises, or says nothing for so long."""
    answers: list[T] = []
    errors: list[Exception] = []

    def ask() -> None:
        try:
            answers.append(question())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=ask, name="asks a store", daemon=True)
    thread.start()
    thread.join(seconds)
    if answers:
        return answers[0]
    raise failed(reason(errors[0]) if errors else f"no answer within {seconds:.0f} s") from None
