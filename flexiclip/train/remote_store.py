"""Checkpoints in an object store, or anywhere else that fsspec reaches: s3://, gs://, abfs://, memory://, ftp://, ...

A single object is uploaded as a whole or not at all, but a checkpoint has several. So state.json, which holds the sizes of the
others, is uploaded after them, and `latest` after that. Credentials and endpoints are set as the backend documents it: with its
environment variables, or with fsspec's configuration (FSSPEC_S3_ENDPOINT_URL, ~/.config/fsspec).

`open_store` returns the store of a folder or URL.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from flexiclip.errors import UserError
from flexiclip.files import system_reason, within
from flexiclip.train.checkpoint import STATE, Checkpoint, incomplete, open_checkpoint, read_state
from flexiclip.train.run_lock import FOLDER, Place
from flexiclip.train.stores import LATEST, SPARE, LocalStore, Store, checked_name, point_elsewhere, step_of

ANSWER_S = 60.0
"""A store that does not answer within this many seconds counts as unreachable. Some backends retry for minutes."""

T = TypeVar("T")


class RemoteStore:
    """The Store (stores.py) at a URL. Any Exception counts as an error of the store, because fsspec's backends have their own.

    staging: a local folder into which checkpoints are written before they are uploaded.
    """

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
        """Return the name of the newest complete checkpoint. Raises UserError if the store cannot be used."""
        text = self.asked(lambda: self.read(LATEST))
        return checked_name(text, f"{self.url}/{LATEST}") if text is not None else None

    def check_writable(self) -> None:
        """Write a small object and remove it. Raises UserError if this fails."""
        self.asked(self._probe)

    def open(self, name: str, fetched: Path) -> Checkpoint:
        """Return a checkpoint, with its files in `fetched`. Raises UserError.

        Files that are complete in `fetched` are not fetched again: state.json is written last here too.
        """
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
            raise incomplete(where, system_reason(error)) from None
        return open_checkpoint(fetched, where)

    def state(self, name: str) -> str:
        """Return the text of a checkpoint's state.json. Raises UserError."""
        text = self.asked(lambda: self.read(f"{name}/{STATE}"))
        if text is None:
            raise incomplete(f"{self.url}/{name}", f"no {STATE}")
        return text

    def aside(self, name: str) -> Path:
        """Return the path of the staging folder, without what an earlier writer left there."""
        shutil.rmtree(self.staging, ignore_errors=True)
        return self.staging

    def put(self, aside: Path, name: str) -> Path:
        """Upload a written folder and make it the latest. Returns the local folder."""
        files = [path.relative_to(aside).as_posix() for path in aside.rglob("*") if path.is_file()]
        if STATE not in files:  # another program has removed files meanwhile
            raise FileNotFoundError(errno.ENOENT, f"{aside / STATE} is gone")
        if not point_elsewhere(self, name):
            self._upload(aside, files, f"{name}{SPARE}")
            self.point_to(f"{name}{SPARE}")
        self._upload(aside, files, name)
        self.point_to(name)
        for other in self._names():
            if other.endswith(SPARE) and step_of(other.removesuffix(SPARE)) is not None:
                self.drop(other)
        return aside

    def _upload(self, aside: Path, files: list[str], name: str) -> None:
        self.drop(name)  # left by an interrupted upload or an earlier start of the run
        for file in sorted(files, key=lambda file: file == STATE):
            self._make_folder(f"{self.root}/{name}/{file}".rpartition("/")[0])
            self.fs.put_file(str(aside / file), f"{self.root}/{name}/{file}")

    def point_to(self, name: str) -> None:
        """Write `latest`."""
        self.fs.pipe_file(f"{self.root}/{LATEST}", f"{name}\n".encode())

    def drop(self, name: str) -> None:
        """Remove a checkpoint, state.json first, so that what is left after a kill does not look complete."""
        self.fs.invalidate_cache()
        for path in (f"{self.root}/{name}/{STATE}", f"{self.root}/{name}"):
            if self.fs.exists(path):
                self.fs.rm(path, recursive=True)

    def steps(self) -> list[int]:
        """Return the steps of all complete checkpoints."""
        return [step for n in self._names() if (step := step_of(n)) is not None and self.fs.exists(f"{self.root}/{n}/{STATE}")]

    def _names(self) -> list[str]:
        self.fs.invalidate_cache()
        if not self.fs.exists(self.root):  # no object yet
            return []
        return [str(path).rstrip("/").rpartition("/")[2] for path in self.fs.ls(self.root, detail=False)]

    def claims(self) -> Place:
        """Return the place of the claims of runs that write here."""
        return _Claims(self)

    def read(self, file: str) -> str | None:
        """Return the text of a small object. None if it does not exist."""
        try:
            return bytes(self.fs.cat_file(f"{self.root}/{file}")).decode("utf-8", "replace")
        except FileNotFoundError:
            return None

    def write(self, file: str, content: bytes) -> None:
        """Write a small object."""
        self._make_folder(f"{self.root}/{file}".rpartition("/")[0])
        self.fs.pipe_file(f"{self.root}/{file}", content)

    def _make_folder(self, path: str) -> None:
        """Make a folder, for FTP and the like. Object stores have no folders, and s3fs would make a bucket.

        Object stores are recognized by fsspec's asynchronous implementation.
        """
        if not self.fs.async_impl:
            self.fs.makedirs(path, exist_ok=True)

    def _probe(self) -> None:
        self.write(".writable", b"a run that starts writes this, and removes it\n")
        self.fs.rm_file(f"{self.root}/.writable")

    def asked(self, question: Callable[[], T]) -> T:
        """Return the answer, or raise UserError within ANSWER_S seconds, however long the backend would retry."""
        try:
            return within(ANSWER_S, question)
        except Exception as error:
            raise UserError(f"checkpoints at {self.url} cannot be reached: {system_reason(error)}") from None


class _Claims:
    """The Place (run_lock.py) of claims next to the checkpoints of a remote store."""

    def __init__(self, store: RemoteStore) -> None:
        self.store, self.fs, self.root = store, store.fs, f"{store.root}/{FOLDER}"

    def __str__(self) -> str:
        return str(self.store)

    def names(self) -> list[str]:
        """Return the names of all claims."""
        return self.store.asked(self._names)

    def _names(self) -> list[str]:
        self.fs.invalidate_cache()
        try:
            return [str(path).rstrip("/").rpartition("/")[2] for path in self.fs.ls(self.root, detail=False)]
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes | None:
        """Return a claim. None if it does not exist."""
        text = self.store.asked(lambda: self.store.read(f"{FOLDER}/{name}"))
        return None if text is None else text.encode()

    def write(self, name: str, content: bytes) -> None:
        """Write a claim."""
        self.store.asked(lambda: self.store.write(f"{FOLDER}/{name}", content))

    def remove(self, name: str) -> None:
        """Remove a claim, if it exists."""

        def remove() -> None:
            with suppress(FileNotFoundError):
                self.fs.rm_file(f"{self.root}/{name}")

        self.store.asked(remove)


def open_store(where: str, staging: Path) -> Store:
    """Return the store of a folder or URL. staging: a local folder that a remote store writes into before it uploads.

    Raises UserError if fsspec cannot open the URL.
    """
    if "://" not in where or where.startswith("file://"):
        return LocalStore(Path(where.removeprefix("file://")).expanduser())
    return RemoteStore(where, staging)
