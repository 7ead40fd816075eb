"""A run folder that all hosts see, checked at the start: with folders of their own, ranks would disagree on where to go on."""

from __future__ import annotations

import os
import socket
import time
import uuid
from pathlib import Path

from flexiclip.errors import UserError
from flexiclip.files import write_whole
from flexiclip.train.checkpoints.files import writing_run_folder
from flexiclip.train.processes.ranks import Ranks

PATIENCE_S = 30.0
"""How long another host's new file may stay unseen: network file systems cache what a folder does not hold."""


def check_shared_folder(folder: Path, ranks: Ranks, key: str = "run_dir", patience_s: float = PATIENCE_S) -> None:
    """Raise UserError, on every rank, when a rank does not see the folder that the main rank made. Collective, and a barrier.

    key: what in the recipe names the folder.
    """
    if ranks.world == 1:
        return
    (token,) = ranks.collect([f".seen-{uuid.uuid4().hex}"] if ranks.main else [])
    if ranks.main:
        (folder / token).touch()
    ranks.barrier()
    blind = ranks.collect([] if _seen(folder, token, patience_s) else [(ranks.rank, socket.gethostname())])
    if ranks.main:
        (folder / token).unlink()
    if blind:
        rank, host = blind[0]
        raise UserError(
            f"{key}={folder}: rank {rank} on host {host} does not see the folder that rank 0 made there: name one on a file "
            "system that all hosts share, by its full path, or keep the checkpoints in an object store (train.checkpoint_dir=s3://...)"
        )


def share_file(path: Path, ranks: Ranks) -> None:
    """Give every host the main rank's file of a few megabytes, under the same path. Collective. Raises UserError."""
    (content,) = ranks.collect([path.read_bytes()] if ranks.main else [])
    if path.is_file() and path.read_bytes() == content:
        return
    with writing_run_folder(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)


def _seen(folder: Path, name: str, patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            if name in os.listdir(folder):  # a listing makes NFS ask the server anew; a look-up by name may not
                return True
        except OSError:
            pass
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)
