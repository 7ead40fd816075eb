"""A heartbeat between the ranks: if one is lost or fails, the others print which one it was and end within a minute.

The collectives cannot do this. NCCL keeps waiting for a peer that is gone, gloo only reports that some connection was closed, and
neither ends a rank that is just reading data or writing a file. So each rank keeps one TCP connection to rank 0, and a thread on
both ends sends a line every two seconds, whatever the main thread does. If a connection closes without a farewell, the process
died. If it is silent for `train.rank_timeout_s`, the host or the network failed. Rank 0 then tells the other ranks.

A slow rank does not count as lost, because the thread keeps running while the main thread compiles, saves or evaluates. Silence
is counted only while the listening process runs itself, so that suspending and resuming a whole machine does not end a run.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import selectors
import signal
import socket
import threading
import time
from datetime import timedelta
from functools import partial
from types import TracebackType

import torch.distributed as dist

from flexiclip.errors import RunError, UserError
from flexiclip.train.signals import Stopped, leave, stopped_code

BEAT_S = 2.0
JOIN_S = 600.0
"""Seconds that ranks have to join. The hosts of a job may start minutes apart."""
GRACE_S = 10
"""Seconds that a rank has to end by itself after it hears of a loss, for example to finish a file. Then its process is ended."""

SAME_MISTAKE_S = 8.0
"""Seconds within which rank 0 finds a mistake that another rank has found, if it is not of that rank alone."""

_FAREWELL_S = 1.0
_KEY = "flexiclip/heartbeat"
_NETWORK = re.compile(r"gloo|nccl|connection (closed|reset)|broken pipe|c10d", re.IGNORECASE)
_MAX_LINE = 1 << 16  # most bytes that a peer may send in one line


class Heartbeat:
    """The heartbeat of one rank, inside a `with` block. `world` must be above 1.

    The other ranks hear how the block ends. If a lost rank caused an exception in the block, a RunError that names that rank
    is raised instead. If the main thread does not leave the block, the process is ended with the same line and exit code 1. If a
    signal stops one rank before the first step, all ranks stop.
    """

    def __init__(self, store: dist.Store, rank: int, world: int, timeout_s: float) -> None:
        """store: a c10d store that all ranks share. Raises RunError if rank 0 cannot be reached."""
        self.rank, self.timeout_s = rank, timeout_s
        self.beat_s = min(BEAT_S, timeout_s / 5)
        self.name = f"rank {rank} ({socket.gethostname()}, pid {os.getpid()})"
        self.loss: str | None = None  # which rank was lost, and how
        self._stopped = False  # whether a signal stopped the lost rank
        self._links: list[_Link] = []
        self._awaited = set(range(1, world)) if rank == 0 else set()
        self._listener: socket.socket | None = None
        self._token = secrets.token_hex(16)
        self._selector = selectors.DefaultSelector()
        self._known, self._over = threading.Event(), threading.Event()
        self._told = False  # whether the main thread reports the loss itself
        self._end_at = float("inf")
        if rank == 0:
            self._listen(store)
        else:
            self._connect(store)
        os.register_at_fork(after_in_child=self._let_go)  # otherwise a data worker would keep a dead rank's connection open
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
        self._thread.start()

    def __enter__(self) -> Heartbeat:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if error is None:
            self._leave({"done": True})
            return
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher may send it, but this rank first reports why it leaves
        caused = self._lies_behind(error)
        self._told = True
        self._compare(error)
        # Only the message is left to print. The alarm ends the process if something, perhaps a library's thread, hangs meanwhile.
        signal.alarm(GRACE_S)
        self._leave({"lost": f"{self.name} left: {_in_one_line(error)}", "stopped": isinstance(error, Stopped)})
        if caused:
            # No variable here may hold the exception, whose traceback has this frame: the cycle would keep data workers alive.
            raise self._own_error() from None

    def _own_error(self) -> BaseException:
        """Return the exception to raise in place of one that a lost rank has caused."""
        if self._stopped:
            return Stopped()
        error = RunError(str(self.loss))
        error.told = False
        return error

    def _compare(self, error: BaseException) -> None:
        """Note whether rank 0 leaves with the same message, as with a mistake in the recipe, which every rank finds."""
        if not isinstance(error, (UserError, RunError)):
            return
        error.told = False
        if self.rank > 0:
            self._known.wait(SAME_MISTAKE_S)  # rank 0 may have left already
            error.told = self.loss is not None and self.loss.startswith("rank 0 ") and self.loss.endswith(f" left: {error}")

    def say_stopped(self) -> None:
        """Tell the other ranks that a signal stops this rank. May be called from any thread.

        It is for a process that is about to end without leaving the block.
        """
        for link in list(self._links):
            link.send({"lost": f"{self.name} left: {Stopped()}", "stopped": True})
            link.hang_up()
        time.sleep(_FAREWELL_S / 4)

    def _lies_behind(self, error: BaseException) -> bool:
        """Whether a lost rank caused the error. After a network error this waits, because the news may come after the error."""
        if isinstance(error, (UserError, RunError)) or not isinstance(error, Exception):
            return False
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and _NETWORK.search(str(error))):
            self._known.wait(self.timeout_s + 2 * self.beat_s)
        return self.loss is not None

    def _leave(self, farewell: dict[str, object]) -> None:
        if self.loss is None:
            for link in list(self._links):
                link.send(farewell)
        self._over.set()
        self._thread.join()

    def _listen(self, store: dist.Store) -> None:
        address = os.environ["MASTER_ADDR"]
        family = socket.getaddrinfo(address, None)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.bind((address, 0))
        except OSError:  # the address belongs to a service, not to this host
            listener.bind(("", 0))
        listener.listen(1024)
        listener.setblocking(False)
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ, partial(self._accept, listener))
        store.set(_KEY, json.dumps({"port": listener.getsockname()[1], "token": self._token, "name": self.name}))

    def _connect(self, store: dist.Store) -> None:
        address = os.environ["MASTER_ADDR"]
        store.wait([_KEY], timedelta(seconds=JOIN_S))
        hub = json.loads(store.get(_KEY))
        try:
            connection = socket.create_connection((address, hub["port"]), timeout=30)
        except OSError as error:
            raise RunError(f"{self.name} cannot reach rank 0 at {address}:{hub['port']}: {error}") from None
        link = _Link(connection, hub["name"])
        link.send({"token": hub["token"], "rank": self.rank, "name": self.name})
        self._add(link)

    def _add(self, link: _Link) -> None:
        self._links.append(link)
        self._selector.register(link.socket, selectors.EVENT_READ, partial(self._read, link))

    def _drop(self, link: _Link) -> None:
        self._links.remove(link)
        self._selector.unregister(link.socket)
        link.socket.close()

    def _watch(self) -> None:
        began = last = time.monotonic()
        while not self._over.is_set():
            for link in self._links:
                link.send({})
            self._read_until(time.monotonic() + self.beat_s)
            now = time.monotonic()
            slept, last = min(now - last, 2 * self.beat_s), now  # without the time in which this process itself was suspended
            for link in list(self._links):
                link.silent += slept
                if link.silent > self.timeout_s and not link.name:
                    self._drop(link)
                elif link.silent > self.timeout_s:
                    self._lose(f"{link.name} is lost: no sign of life for {self.timeout_s:g} s (train.rank_timeout_s)")
            if self._awaited and now - began > JOIN_S:
                self._lose(
                    f"{len(self._awaited)} ranks have not joined within {JOIN_S:g} s, among them rank {min(self._awaited)}"
                )
            if now > self._end_at:
                line = None if self._told else f"flexiclip: {self.loss}"  # the same line and code as the command line's
                leave(line, stopped_code() if self._stopped else 1)
        for link in self._links:  # an immediate close could lose a line that is still being sent
            link.hang_up()
        self._read_until(time.monotonic() + _FAREWELL_S)
        self._let_go()

    def _read_until(self, deadline: float) -> None:
        leaving = self._over.is_set()
        while (left := deadline - time.monotonic()) > 0 and (bool(self._links) if leaving else not self._over.is_set()):
            for key, _ in self._selector.select(min(left, 0.2)):
                key.data()

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:  # the other side has closed it again
            return
        self._add(_Link(connection, ""))

    def _read(self, link: _Link) -> None:
        try:
            for message in link.receive():
                self._hear(link, message)
        except (OSError, ValueError):  # closed, or not our protocol
            name, done = link.name, link.done
            self._drop(link)
            if name and not done:
                self._lose(f"{name} is lost: its process ended without a word (killed, or out of memory?)")

    def _hear(self, link: _Link, message: dict[str, object]) -> None:
        if not link.name:  # only ranks of this run know the token; a port scanner does not
            if message.get("token") != self._token:
                raise ValueError("not a rank of this run")
            link.name = str(message["name"])
            self._awaited.discard(int(str(message["rank"])))
        elif "lost" in message:
            link.done = True
            self._lose(str(message["lost"]), bool(message.get("stopped")))
        elif "done" in message:
            link.done = True
            raise ConnectionAbortedError  # neither side sends anything more

    def _lose(self, loss: str, stopped: bool = False) -> None:
        if self.loss is not None or self._over.is_set():
            return
        for link in self._links:
            link.send({"lost": loss, "stopped": stopped})
        self.loss, self._stopped, self._end_at = loss, stopped, time.monotonic() + GRACE_S
        self._known.set()

    def _let_go(self) -> None:
        """Close the sockets: in a fork its copies, and at the end of the watch its own."""
        for link in self._links:
            link.socket.close()
        if self._listener is not None:
            self._listener.close()


class _Link:
    """A connection to another rank that carries JSON objects, one per line. `name` is empty until the other rank has sent it."""

    def __init__(self, connection: socket.socket, name: str) -> None:
        connection.setblocking(False)
        self.socket, self.name = connection, name
        self.done = False  # whether the other rank has said farewell
        self.silent = 0.0  # seconds since the last line
        self._unread = b""

    def send(self, message: dict[str, object]) -> None:
        """Send a message. Errors are ignored, because a full buffer or a closed connection is noticed when reading."""
        with contextlib.suppress(OSError):
            self.socket.send(json.dumps(message).encode() + b"\n")

    def hang_up(self) -> None:
        """Close the sending direction. The other side closes the connection when it has read everything."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def receive(self) -> list[dict[str, object]]:
        """Return the messages that have arrived. Raises OSError if the other side is gone, ValueError if a line is not valid."""
        try:
            data = self.socket.recv(_MAX_LINE)
        except BlockingIOError:
            return []
        if not data:
            raise ConnectionResetError
        self.silent = 0.0
        *lines, self._unread = (self._unread + data).split(b"\n")
        if len(self._unread) > _MAX_LINE:
            raise ValueError("a line without end")
        messages = [json.loads(line) for line in lines]
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("not an object")
        return messages


def _in_one_line(error: BaseException) -> str:
    if isinstance(error, (UserError, RunError, Stopped)):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
