"""The store at a folder or URL."""

from __future__ import annotations

from pathlib import Path

from flexiclip.train.checkpoints.local_store import LocalStore
from flexiclip.train.checkpoints.remote_store import RemoteStore
from flexiclip.train.checkpoints.stores import Store


def open_store(where: str, staging: Path) -> Store:
    """The store at a folder or URL. staging: a local folder to write into, for a store that is not local. Raises UserError."""
    if "://" not in where or where.startswith("file://"):
        return LocalStore(Path(where.removeprefix("file://")).expanduser())
    return RemoteStore(where, staging)
