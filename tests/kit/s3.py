"""A real S3 API server on 127.0.0.1 for the tests, and a road to it that can be blocked at a chosen object."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from kit.launch import free_port

BUCKET = "bucket"


def credentials(port: int) -> dict[str, str]:
    """The environment that leads a process to the server at a port."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


class S3Server:
    """moto, which keeps objects in memory and speaks the API, in a process of its own."""

    def __init__(self, log: Path) -> None:
        self.port = free_port()
        with log.open("w") as file:
            command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
            self._process = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            self._wait(log)
            self.fs.mkdir(BUCKET)
        except BaseException:
            self.close()
            raise

    def _wait(self, log: Path) -> None:
        """Until it listens."""
        deadline = time.monotonic() + 120
        while True:
            assert self._process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "the S3 server does not start"
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.05)

    @property
    def fs(self):
        """Its file system, seen from the test."""
        import s3fs

        return s3fs.S3FileSystem(
            key="key",
            secret="secret",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            use_listings_cache=False,
        )

    def names(self, folder: str) -> set[str]:
        """What lies in a folder of the bucket."""
        return {path.rpartition("/")[2] for path in self.fs.ls(f"{BUCKET}/{folder}", detail=False, refresh=True)}

    def text(self, path: str) -> str | None:
        """The text of an object, or None."""
        try:
            return self.fs.cat_file(f"{BUCKET}/{path}").decode()
        except FileNotFoundError:
            return None

    def close(self) -> None:
        self._process.kill()
        self._process.wait(10)


class Road:
    """A TCP relay to a server. What a client sends passes, unless it asks for an object whose path holds `blocked`."""

    def __init__(self, port: int, blocked: bytes, answer: str) -> None:
        """answer: `hold` takes the request and never answers; `close` ends the connection, each time."""
        self._target, self.blocked, self._answer = port, blocked, answer
        self.reached = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            self._open += [client, server]
            threading.Thread(target=self._relay, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._relay, args=(server, client, False), daemon=True).start()

    def _relay(self, source: socket.socket, target: socket.socket, asks: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                if asks and data.startswith(b"PUT ") and self.blocked in data.partition(b"\r\n")[0]:
                    self.reached.set()
                    if self._answer == "hold":
                        return
                    break
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            end.close()

    def close(self) -> None:
        self._listener.close()
        for end in self._open:
            end.close()
