"""Checkpoints in an object store, or anywhere else that fsspec reaches: s3://, gs://, abfs://, memory://, ftp://, ...

A single object is uploaded as a whole or not at all, but a checkpoint has several. So state.json, which holds the sizes of the
others, is uploaded after them, and `latest` after that. Credentials and endpoints are set as the backend documents it: with its
environment variables, or with fsspec's configuration (FSSPEC_S3_ENDPOINT_URL, ~/.config/fsspec).

`open_store` returns the store of a folder or URL.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from flexiclip.errors import UserError
from flexiclip.files import system_reason, within
from flexiclip.train.checkpoint import STATE, Checkpoint, incomplete, open_checkpoint, read_state
from flexiclip.train.stores import LocalStore, Store

ANSWER_S = 60.0
"""A store that does not answer within this many seconds counts as unreachable. Some backends retry for minutes."""

T = TypeVar("T")


class RemoteStore(Store):
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

    def names(self, folder: str = "") -> list[str]:
        """Return the names of what is in a folder of the store."""

        def names() -> list[str]:
            self.fs.invalidate_cache()
            return [str(path).rstrip("/").rpartition("/")[2] for path in self.fs.ls(self._path(folder), detail=False)]

        return self._ask(names, [])

    def read(self, file: str) -> bytes | None:
        """Return a small object. None if it does not exist."""
        return self._ask(lambda: bytes(self.fs.cat_file(self._path(file))), None)

    def write(self, file: str, content: bytes) -> None:
        """Write a small object."""

        def write() -> None:
            self._make_parent(file)
            self.fs.pipe_file(self._path(file), content)

        self._ask(write)

    def remove(self, file: str) -> None:
        """Remove a small object, if it exists."""
        self._ask(lambda: self.fs.rm_file(self._path(file)), None)

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
                self.fs.get_file(self._path(f"{name}/{file}"), str(fetched / file))
            (fetched / STATE).write_text(text, encoding="utf-8")
        except Exception as error:
            raise incomplete(where, system_reason(error)) from None
        return open_checkpoint(fetched, where)

    def aside(self, name: str) -> Path:
        """Return the path of the staging folder, without what an earlier writer left there."""
        shutil.rmtree(self.staging, ignore_errors=True)
        return self.staging

    def copy_in(self, aside: Path, name: str) -> None:
        """Upload a written folder, state.json last."""
        self.drop(name)  # left by an interrupted upload or an earlier start of the run
        files = [path.relative_to(aside).as_posix() for path in aside.rglob("*") if path.is_file()]
        for file in sorted(files, key=lambda file: file == STATE):
            self._make_parent(f"{name}/{file}")
            self.fs.put_file(str(aside / file), self._path(f"{name}/{file}"))

    def move_in(self, aside: Path, name: str) -> Path:
        """Upload a written folder. Returns the local folder, which the caller may remove."""
        self.copy_in(aside, name)
        return aside

    def drop(self, name: str) -> None:
        """Remove a checkpoint, state.json first, so that what is left after a kill does not look complete."""
        self.fs.invalidate_cache()
        for path in (self._path(f"{name}/{STATE}"), self._path(name)):
            if self.fs.exists(path):
                self.fs.rm(path, recursive=True)

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}".rstrip("/")

    def _make_parent(self, file: str) -> None:
        """Make the folder of a file, for FTP and the like. Object stores have no folders, and s3fs would make a bucket.

        Object stores are recognized by fsspec's asynchronous implementation.
        """
        if not self.fs.async_impl:
            self.fs.makedirs(self._path(file).rpartition("/")[0], exist_ok=True)

    def _ask(self, question: Callable[[], T], *absent: T) -> T:
        """Return the answer, or `absent`, if it is given, where the file or folder does not exist.

        Raises UserError within ANSWER_S seconds, however long the backend would retry.
        """
        try:
            return within(ANSWER_S, question)
        except Exception as error:
            if absent and isinstance(error, FileNotFoundError):
                return absent[0]
            raise UserError(f"checkpoints at {self.url} cannot be reached: {system_reason(error)}") from None


def open_store(where: str, staging: Path) -> Store:
    """Return the store of a folder or URL. staging: a local folder that a remote store writes into before it uploads.

    Raises UserError if fsspec cannot open the URL.
    """
    if "://" not in where or where.startswith("file://"):
        return LocalStore(Path(where.removeprefix("file://")).expanduser())
    return RemoteStore(where, staging)
