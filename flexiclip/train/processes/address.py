"""Where gloo listens, checked before the process group is made: gloo waits half an hour for one that nobody reaches."""

from __future__ import annotations

import ipaddress
import os
import socket

from flexiclip.errors import UserError


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
