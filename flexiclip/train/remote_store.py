"""Checkpoints in an object store, or wherever else fsspec reaches: s3://, gs://, abfs://, memory://, ftp://, ...

An object appears whole or not at all, but a checkpoint is several. So state.json, which holds the sizes of the others, goes up
after them, and `latest` after that. Credentials and endpoints are the backend's affair: its environment variables, or fsspec's
configuration (FSSPEC_S3_ENDPOINT_URL, ~/.config/fsspec).

The store at a folder or URL.
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
        text = self.asked(lambda: self.read(LATEST))
        return checked_name(text, f"{self.url}/{LATEST}") if text is not None else None

    def check_writable(self) -> None:
        """See Store. Writes a small object and removes it."""
        self.asked(self._probe)

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
            raise incomplete(where, system_reason(error)) from None
        return open_checkpoint(fetched, where)

    def state(self, name: str) -> str:
        """See Store."""
        text = self.asked(lambda: self.read(f"{name}/{STATE}"))
        if text is None:
            raise incomplete(f"{self.url}/{name}", f"no {STATE}")
        return text

    def aside(self, name: str) -> Path:
        """See Store."""
        shutil.rmtree(self.staging, ignore_errors=True)
        return self.staging

    def put(self, aside: Path, name: str) -> Path:
        """See Store."""
        files = [path.relative_to(aside).as_posix() for path in aside.rglob("*") if path.is_file()]
        if STATE not in files:  # somebody tidied up meanwhile
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
        self.drop(name)  # what an interrupted upload, or an earlier life of the run, left there
        for file in sorted(files, key=lambda file: file == STATE):
            self._make_folder(f"{self.root}/{name}/{file}".rpartition("/")[0])
            self.fs.put_file(str(aside / file), f"{self.root}/{name}/{file}")

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
        return [step for n in self._names() if (step := step_of(n)) is not None and self.fs.exists(f"{self.root}/{n}/{STATE}")]

    def _names(self) -> list[str]:
        self.fs.invalidate_cache()
        if not self.fs.exists(self.root):  # no object yet
            return []
        return [str(path).rstrip("/").rpartition("/")[2] for path in self.fs.ls(self.root, detail=False)]

    def claims(self) -> Place:
        """See Store."""
        return _Claims(self)

    def read(self, file: str) -> str | None:
        """A small object's text; None where there is none."""
        try:
            return bytes(self.fs.cat_file(f"{self.root}/{file}")).decode("utf-8", "replace")
        except FileNotFoundError:
            return None

    def write(self, file: str, content: bytes) -> None:
        """Write a small object."""
        self._make_folder(f"{self.root}/{file}".rpartition("/")[0])
        self.fs.pipe_file(f"{self.root}/{file}", content)

    def _make_folder(self, path: str) -> None:
        """For FTP and its like. Object stores, those that fsspec drives asynchronously, have none: s3fs would make a bucket."""
        if not self.fs.async_impl:
            self.fs.makedirs(path, exist_ok=True)

    def _probe(self) -> None:
        self.write(".writable", b"a run that starts writes this, and removes it\n")
        self.fs.rm_file(f"{self.root}/.writable")

    def asked(self, question: Callable[[], T]) -> T:
        """The answer, or a UserError within ANSWER_S, however long the backend would try."""
        try:
            return within(ANSWER_S, question)
        except Exception as error:
            raise UserError(f"checkpoints at {self.url} cannot be reached: {system_reason(error)}") from None


class _Claims:
    """See run_lock.Place. Its files lie beside the checkpoints."""

    def __init__(self, store: RemoteStore) -> None:
        self.store, self.fs, self.root = store, store.fs, f"{store.root}/{FOLDER}"

    def __str__(self) -> str:
        return str(self.store)

    def names(self) -> list[str]:
        """See Place."""
        return self.store.asked(self._names)

    def _names(self) -> list[str]:
        self.fs.invalidate_cache()
        try:
            return [str(path).rstrip("/").rpartition("/")[2] for path in self.fs.ls(self.root, detail=False)]
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes | None:
        """See Place."""
        text = self.store.asked(lambda: self.store.read(f"{FOLDER}/{name}"))
        return None if text is None else text.encode()

    def write(self, name: str, content: bytes) -> None:
        """See Place."""
        self.store.asked(lambda: self.store.write(f"{FOLDER}/{name}", content))

    def remove(self, name: str) -> None:
        """See Place."""

        def remove() -> None:
            with suppress(FileNotFoundError):
                self.fs.rm_file(f"{self.root}/{name}")

        self.store.asked(remove)


def open_store(where: str, staging: Path) -> Store:
    """The store at a folder or URL. staging: a local folder to write into, for a store that is not local. Raises UserError."""
    if "://" not in where or where.startswith("file://"):
        return LocalStore(Path(where.removeprefix("file://")).expanduser())
    return RemoteStore(where, staging)
