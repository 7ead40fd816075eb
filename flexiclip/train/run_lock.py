"""A lock that allows only one run at a time in a run folder and in a store of checkpoints.

The locks of an operating system do not work across network file systems and object stores. So every start writes a claim, a small
file of its own, into the folder .running there, and goes on only if no other process has one. If two start at the same moment,
the one with the larger name withdraws. A thread renews the claim, and it is removed at the end. The run folder is treated as a
LocalStore, like a folder of checkpoints.

A claim whose process was killed must not block the next start. If the claim is from the same machine, the process is looked up,
which decides at once. For a claim from another machine, the file is watched for the time of several renewals, measured with our
own clock, to see whether it is still being renewed.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from flexiclip.errors import RunError, UserError
from flexiclip.train.stores import Store

FOLDER = ".running"
BEAT_S = 5.0
"""Seconds between two renewals of a claim."""
SILENT_S = 40.0
"""Another machine's claim is stale after this many seconds without a renewal."""
RESTART_S = 60.0
"""Seconds that ranks restarted by torchrun wait for their predecessors to end, on any host."""

_POLL_S = 0.5
_HOLDS, _ASKS = "holds", "asks"


class RunLock:
    """The claims of one run, held from `take` to the end of the `with` block. Without a call of `take` it does nothing."""

    def __init__(self, beat_s: float = BEAT_S, silent_s: float = SILENT_S) -> None:
        self.beat_s, self.silent_s = beat_s, silent_s
        self.name = secrets.token_hex(8)
        self._file = f"{FOLDER}/{self.name}"
        self._held: list[Store] = []
        self._lost: str | None = None
        self._beat = 0
        self._over = threading.Event()
        self._changing = threading.Lock()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(self.beat_s)  # a store that does not answer must not keep the process alive
        for place in self._held:
            with suppress(Exception):  # if it stays, the next run finds that this process has ended
                place.remove(self._file)

    def take(self, place: Store, key: str, say: Callable[[str], None]) -> None:
        """Claim a place. key: the key of the recipe that names it. say: prints a line if this has to wait.

        Raises UserError if another process trains there, and what the place raises if it cannot be written.
        """
        with self._changing:  # a place whose former content was moved is claimed again
            self._held = [held for held in self._held if str(held) != str(place)]
        try:
            place.write(self._file, self._claim(_ASKS))
            self._wait_for_others(place, key, say)
            place.write(self._file, self._claim(_HOLDS))
        except BaseException:
            with suppress(Exception):
                place.remove(self._file)
            raise
        with self._changing:
            self._held.append(place)
        if self._thread is None:
            self._thread = threading.Thread(target=self._renew, name="run lock", daemon=True)
            self._thread.start()

    def check(self) -> None:
        """Raise RunError if another process has taken over a place, because this one did not renew its claim for too long."""
        if self._lost is not None:
            raise RunError(self._lost)

    def forget(self, place: Store) -> None:
        """Remove the claim from a place to which the content of a claimed one was moved."""
        place.remove(self._file)

    def _claim(self, state: str) -> bytes:
        self._beat += 1
        claim = {"state": state, "host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
        return json.dumps({**claim, "machine": _machine(), "beat": self._beat}).encode()

    def _others(self, place: Store) -> dict[str, bytes]:
        """Return the claims of other processes, by name."""
        found = {name: place.read(f"{FOLDER}/{name}") for name in place.names(FOLDER) if name != self.name}
        return {name: content for name, content in found.items() if content is not None}

    def _wait_for_others(self, place: Store, key: str, say: Callable[[str], None]) -> None:
        """Wait until no other claim there may be alive. Raises UserError if another claim is alive."""
        watch = _Watch(self.silent_s)
        patient = time.monotonic() + (RESTART_S if int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0) else 0.0)
        renewed, told = time.monotonic(), False
        while others := self._others(place):
            for name, content in others.items():
                claim = _read(content)
                alive = watch.alive(name, content, claim)
                if alive is False:
                    place.remove(f"{FOLDER}/{name}")
                elif alive and (claim.get("state") == _HOLDS or name < self.name) and time.monotonic() >= patient:
                    raise UserError(
                        f"{key}={place}: another process trains there ({_who(claim)}): wait for its end or stop it, or give "
                        f"another {key}"
                    )
                elif not told:
                    told = True
                    say(f"{key}={place} may be in use by {_who(claim)}: waiting up to {self.silent_s:.0f} s for a sign of it")
            time.sleep(min(_POLL_S, self.silent_s / 10))
            if time.monotonic() - renewed > self.beat_s:
                place.write(self._file, self._claim(_ASKS))
                renewed = time.monotonic()

    def _renew(self) -> None:
        while not self._over.wait(self.beat_s):
            with self._changing:
                for place in self._held:
                    with suppress(Exception):  # an unreachable store or a full disk; the next renewal may succeed
                        self._renew_one(place)

    def _renew_one(self, place: Store) -> None:
        """Renew the claim on one place, unless another process has taken it over. Raises what the place raises."""
        gone = place.read(self._file) is None  # another process took it for dead, or another program removed it
        for name, content in self._others(place).items():
            claim = _read(content)
            if claim.get("state") == _HOLDS and (gone or name < self.name):
                self._lost = (
                    f"another process ({_who(claim)}) has taken {place} over, as this one gave no sign of life for "
                    f"{self.silent_s:.0f} s: it goes on there, and this one ends"
                )
                return
        place.write(self._file, self._claim(_HOLDS))


class _Watch:
    """The claims of others as they were seen: their last content, and since when it is unchanged."""

    def __init__(self, silent_s: float) -> None:
        self.silent_s = silent_s
        self._seen: dict[str, tuple[bytes, float, bool]] = {}

    def alive(self, name: str, content: bytes, claim: dict[str, object]) -> bool | None:
        """Whether the process of a claim is alive. None if this is not known yet."""
        pid, now = claim.get("pid"), time.monotonic()
        if claim.get("machine") == _machine() and isinstance(pid, int):
            return (started := _started(pid)) is not None and started == claim.get("started")
        before, since, renewed = self._seen.get(name, (content, now, False))
        if before != content:
            since, renewed = now, True
        self._seen[name] = content, since, renewed
        if now - since > self.silent_s:
            return False
        return True if renewed else None


def _read(content: bytes) -> dict[str, object]:
    try:
        claim = json.loads(content)
    except ValueError:  # a half-written file
        return {}
    return claim if isinstance(claim, dict) else {}


def _who(claim: dict[str, object]) -> str:
    return f"pid {claim.get('pid', '?')} on {claim.get('host', 'an unknown host')}"


def _machine() -> str:
    """Return an id of this machine since its boot and of the container's process numbers. Outside of Linux, the host's name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str | None:
    """Return when a process was started. None if there is no such process.

    The time tells a process from a later one with the same number. Outside of Linux the result is always "running".
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    with suppress(PermissionError):  # a process of another user
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
    return "running"
