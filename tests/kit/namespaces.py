"""Two hosts on one machine: network namespaces joined by a pair of virtual interfaces, and commands started inside them.

It needs Linux, `ip` (Debian: apt install iproute2) and the right to make namespaces (root, or CAP_NET_ADMIN and CAP_SYS_ADMIN).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kit.launch import ENVIRONMENT, Command, descendants


@dataclass(frozen=True)
class Host:
    """One namespace: its name, its address and the interface that leads to the other."""

    name: str
    address: str
    interface: str

    def start(self, command: Command, log: Path, argv: list[str], **environment: str) -> None:
        """Run a command inside, its output in `log`. Gloo is told the interface: the machine's name resolves to loopback."""
        given = {**ENVIRONMENT, "GLOO_SOCKET_IFNAME": self.interface, **environment}
        command.start(["ip", "netns", "exec", self.name, *argv], str(log), given)

    def cut(self) -> None:
        """Take the link down, as a pulled cable would."""
        _ip("-n", self.name, "link", "set", self.interface, "down")


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """The hosts, removed at the end whatever happens. Raises OSError where the machine refuses them."""
    if shutil.which("ip") is None:
        raise OSError("there is no `ip` command (Debian: apt install iproute2)")
    pid = os.getpid()
    hosts = tuple(Host(f"flexiclip-{pid}-{n}", f"10.77.0.{n}", f"fc{n}") for n in (1, 2))
    first, second = hosts
    try:
        for host in hosts:
            _ip("netns", "add", host.name)
        joined = ["type", "veth", "peer", "name", second.interface, "netns", second.name]
        _ip("-n", first.name, "link", "add", first.interface, *joined)
        for host in hosts:
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", host.interface)
            for interface in ("lo", host.interface):
                _ip("-n", host.name, "link", "set", interface, "up")
        yield first, second
    finally:
        for host in hosts:  # its end of the pair goes with a namespace, and the other end with that
            subprocess.run(["ip", "netns", "delete", host.name], capture_output=True, check=False)


def _ip(*argv: str) -> None:
    done = subprocess.run(["ip", *argv], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(argv)}: {done.stderr.strip()}")


def kill_children(pid: int) -> None:
    """SIGKILL for a launcher and all that it started, as when a host loses its power."""
    for each in descendants(pid):
        try:
            os.kill(each, 9)
        except ProcessLookupError:
            continue
