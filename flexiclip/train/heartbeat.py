"""Signs of life between the ranks: when one is lost or leaves with an error, the others name it and leave within a minute.

The collectives cannot do this. NCCL keeps waiting for a peer that is gone, gloo only says that some connection was closed, and
neither ends a rank that is reading data or writing a file at that moment. So each rank keeps one TCP connection to rank 0, on
which both send a line every two seconds from a thread of their own, whatever the main thread does. A connection that closes
without a farewell is a process that died; one that stays silent for `train.rank_timeout_s` is a host or a network that did.
Rank 0 tells the others.

A rank that is slow is not lost: compiling, saving and evaluating leave the thread its turn, and silence is counted in the waking
time of the one that listens, so that a machine that was suspended as a whole wakes up whole.
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
from types import TracebackType
from typing import Any

import torch.distributed as dist

from flexiclip.errors import RunError, UserError
from flexiclip.train.signals import Stopped, leave, stopped_code

BEAT_S = 2.0
JOIN_S = 600.0
"""Seconds for every rank to join: hosts of one job may start minutes apart."""
GRACE_S = 10
"""Seconds from the news of a loss that a rank may take to leave by itself, for example to finish a file. Then it is ended."""

_FAREWELL_S = 1.0
_KEY = "flexiclip/heartbeat"
_NETWORK = re.compile(r"gloo|nccl|connection (closed|reset)|broken pipe|c10d", re.IGNORECASE)
_MAX_LINE = 1 << 16  # bytes that a peer may send without ending its line


class Heartbeat:
    """The watch of one rank among `world` > 1, for the time of a `with` block.

    Whatever ends the block is told to the other ranks. An exception that a lost rank has caused leaves it as a RunError that
    names that rank; where the main thread does not come out, the process is ended with the same line and code 1. A rank that
    a signal has stopped before the first step stops all.
    """

    def __init__(self, store: Any, rank: int, world: int, timeout_s: float) -> None:
        """store: a c10d store that all ranks share. Raises RunError when rank 0 cannot be reached."""
        self.rank, self.timeout_s = rank, timeout_s
        self.beat_s = min(BEAT_S, timeout_s / 5)
        self.name = f"rank {rank} ({socket.gethostname()}, pid {os.getpid()})"
        self.loss: str | None = None  # which rank the run has lost, and how
        self._stopped = False  # by a signal that it was sent
        self._links: list[_Link] = []
        self._awaited = set(range(1, world)) if rank == 0 else set()
        self._listener: socket.socket | None = None
        self._token = secrets.token_hex(16)
        self._selector = selectors.DefaultSelector()
        self._known, self._over = threading.Event(), threading.Event()
        self._told = False  # the main thread says the loss, or has
        self._end_at = float("inf")
        if rank == 0:
            self._listen(store)
        else:
            self._connect(store)
        os.register_at_fork(after_in_child=self._let_go)  # or a data worker would hold the connection of a dead rank open
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
        self._thread.start()

    def __enter__(self) -> Heartbeat:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if error is None:
            self._leave({"done": True})
            return
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of the launcher, which has seen it too: we leave, but not without a word
        caused = self._lies_behind(error)
        self._told = True
        # Nothing is left to do but to say the line: what hangs on the way out, a library's threads perhaps, must not keep us.
        signal.alarm(GRACE_S)
        self._leave({"lost": f"{self.name} left: {_in_one_line(error)}", "stopped": isinstance(error, Stopped)})
        if caused:
            raise (Stopped() if self._stopped else RunError(str(self.loss))) from None

    def say_stopped(self) -> None:
        """Tell the others, from any thread, that a signal stops this rank, which is about to end without leaving the block."""
        for link in list(self._links):
            link.send({"lost": f"{self.name} left: {Stopped()}", "stopped": True})
            link.hang_up()
        time.sleep(_FAREWELL_S / 4)

    def _lies_behind(self, error: BaseException) -> bool:
        """Whether a lost rank caused the error. One of the network waits for the news, which may come later than the error."""
        if isinstance(error, (UserError, RunError)) or not isinstance(error, Exception):
            return False
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and _NETWORK.search(str(error))):
            self._known.wait(self.timeout_s + 2 * self.beat_s)
        return self.loss is not None

    def _leave(self, farewell: dict[str, Any]) -> None:
        if self.loss is None:
            for link in list(self._links):
                link.send(farewell)
        self._over.set()
        self._thread.join()

    def _listen(self, store: Any) -> None:
        address = os.environ["MASTER_ADDR"]
        family = socket.getaddrinfo(address, None)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.bind((address, 0))
        except OSError:  # a service's address, which is not this host's own
            listener.bind(("", 0))
        listener.listen(1024)
        listener.setblocking(False)
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ)
        store.set(_KEY, json.dumps({"port": listener.getsockname()[1], "token": self._token, "name": self.name}))

    def _connect(self, store: Any) -> None:
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
        self._selector.register(link.socket, selectors.EVENT_READ, link)

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
            slept, last = min(now - last, 2 * self.beat_s), now  # not the time in which this process was stopped itself
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
                self._end()
        for link in self._links:  # closed at once, a line that is still on its way could be lost
            link.hang_up()
        self._read_until(time.monotonic() + _FAREWELL_S)
        self._let_go()

    def _read_until(self, deadline: float) -> None:
        leaving = self._over.is_set()
        while (left := deadline - time.monotonic()) > 0 and (bool(self._links) if leaving else not self._over.is_set()):
            for key, _ in self._selector.select(min(left, 0.2)):
                if key.data is None:
                    self._accept()
                else:
                    self._read(key.data)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it hung up again
            return
        self._add(_Link(connection, ""))

    def _read(self, link: _Link) -> None:
        try:
            for message in link.receive():
                self._hear(link, message)
        except (OSError, ValueError):  # closed, or no language of ours
            name, done = link.name, link.done
            self._drop(link)
            if name and not done:
                self._lose(f"{name} is lost: its process ended without a word (killed, or out of memory?)")

    def _hear(self, link: _Link, message: dict[str, Any]) -> None:
        if not link.name:  # a stranger: a rank knows the token, a port scanner does not
            if message.get("token") != self._token:
                raise ValueError("no rank of this run")
            link.name = str(message["name"])
            self._awaited.discard(int(message["rank"]))
        elif "lost" in message:
            link.done = True
            self._lose(str(message["lost"]), bool(message.get("stopped")))
        elif "done" in message:
            link.done = True
            raise ConnectionAbortedError  # nothing more is to be said on either side

    def _lose(self, loss: str, stopped: bool = False) -> None:
        if self.loss is not None or self._over.is_set():
            return
        for link in self._links:
            link.send({"lost": loss, "stopped": stopped})
        self.loss, self._stopped, self._end_at = loss, stopped, time.monotonic() + GRACE_S
        self._known.set()

    def _end(self) -> None:
        line = None if self._told else f"flexiclip: {self.loss}"
        leave(line, stopped_code() if self._stopped else 1)  # as the command line would

    def _let_go(self) -> None:
        """Close the sockets of this process; a fork's copies, or the watch's own at its end."""
        for link in self._links:
            link.socket.close()
        if self._listener is not None:
            self._listener.close()


class _Link:
    """A connection to another rank that carries JSON objects, one a line. `name` is empty until the other has said it."""

    def __init__(self, connection: socket.socket, name: str) -> None:
        connection.setblocking(False)
        self.socket, self.name = connection, name
        self.done = False  # it has said farewell
        self.silent = 0.0  # seconds since the last line
        self._unread = b""

    def send(self, message: dict[str, Any]) -> None:
        """Send, or let it be: a full buffer or a closed connection shows when it is read."""
        with contextlib.suppress(OSError):
            self.socket.send(json.dumps(message).encode() + b"\n")

    def hang_up(self) -> None:
        """Send nothing more; the other side closes when it has read everything."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def receive(self) -> list[dict[str, Any]]:
        """The lines that have arrived. Raises OSError when the other side is gone, ValueError for what is no line of ours."""
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
