"""What a run on several hosts needs of them, checked at its start: an address that the others reach, a run folder that all see.

Both faults would otherwise show late and say little: gloo waits for half an hour on a connection to the wrong address, and ranks
that read a folder of their own disk disagree on where the run goes on.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from flexiclip.errors import UserError
from flexiclip.train.checkpoints.files import write_whole

if TYPE_CHECKING:
    from flexiclip.train.processes.ranks import Ranks  # which imports this module

PATIENCE_S = 30.0
"""How long another host's new file may stay unseen: network file systems cache what a folder does not hold."""


def check_address() -> None:
    """Raise UserError when gloo would listen where no other host can reach it. Called before the process group is made.

    Without GLOO_SOCKET_IFNAME gloo listens on the address that the host's own name resolves to, and /etc/hosts often says
    127.0.1.1. The host-side group of a run is gloo also on GPUs.
    """
    if os.environ.get("GLOO_SOCKET_IFNAME"):
        return
    name = socket.gethostname()
    try:
        addresses = sorted({str(info[4][0]) for info in socket.getaddrinfo(name, None)})
    except OSError:
        addresses = []
    if all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses):
        meaning = f"resolves to {', '.join(addresses)}" if addresses else "does not resolve"
        raise UserError(
            f"this host's name {name} {meaning}, where no other host reaches it: set GLOO_SOCKET_IFNAME (on GPUs also "
            "NCCL_SOCKET_IFNAME) to the network interface between the hosts, as `ip address` names it"
        )


def check_shared_folder(folder: Path, ranks: Ranks, patience_s: float = PATIENCE_S) -> None:
    """Raise UserError, on every rank, when a rank does not see the folder that the main rank made. Collective, and a barrier."""
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
            f"run_dir={folder}: rank {rank} on host {host} does not see the folder that rank 0 made there: name one on a file "
            "system that all hosts share, by its full path, or keep the checkpoints in an object store (train.checkpoint_dir=s3://...)"
        )


def share_file(path: Path, ranks: Ranks) -> None:
    """Give every host the main rank's file of a few megabytes, under the same path. Collective."""
    (content,) = ranks.collect([path.read_bytes()] if ranks.main else [])
    if path.is_file() and path.read_bytes() == content:
        return
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
