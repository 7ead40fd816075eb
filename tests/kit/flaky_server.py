"""A web server of real sockets that serves a folder by ranges and misbehaves as it is told."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class FlakyServer:
    """Serves `folder` at `url` for the time of a block.

    faults: how the first, second, ... request for each range ends; requests beyond them are answered rightly, all but those of a
    single fault in `always`. only: the faults are for paths that hold this text. Faults:
    STATUS (any number), hang (never answers), trickle (a byte at a time), close (in the middle of the body), short (a shorter
    body and its length), promise (a longer length than body), whole (ignores the range), shifted (another range), loop (of
    redirects).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: Sequence[str] = ()
        self.always = ""
        self.only = ""
        self.requests: Counter[tuple[str, str]] = Counter()  # by path and range
        self.leaving = threading.Event()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": self}))
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FlakyServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.leaving.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fault(self, path: str, wanted: str) -> str:
        """What happens to this request; "" for nothing."""
        with self._lock:
            number = self.requests[path, wanted]
            self.requests[path, wanted] += 1
        if self.only not in path:
            return ""
        return self.faults[number] if number < len(self.faults) else self.always


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: FlakyServer

    def do_HEAD(self) -> None:
        self._send(200, self._content(), body=False)

    def do_GET(self) -> None:
        content = self._content()
        if content is None:
            self.send_error(404)
            return
        wanted = self.headers.get("Range", "")
        fault = self.site.fault(self.path, wanted)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, end = (int(first), min(int(last), len(content) - 1) + 1) if wanted else (0, len(content))
        part = content[start:end]
        if fault == "hang":
            self.site.leaving.wait(60)
            self.close_connection = True
        elif fault.isdigit():
            self.send_error(int(fault))
        elif fault == "loop":
            self.send_response(302)
            self.send_header("Location", self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif fault == "whole":
            self._send(200, content)
        elif fault == "shifted":
            self._send(206, content[start + 512 : end + 512], start + 512, len(content))
        elif fault == "short":
            self._send(206, part[: len(part) // 2], start, len(content))
        elif fault in ("close", "promise", "trickle"):
            self._break(fault, part, start, len(content))
        else:
            self._send(206 if wanted else 200, part, start, len(content))

    def _content(self) -> bytes | None:
        path = self.site.folder / self.path.rpartition("/")[2]
        return path.read_bytes() if path.is_file() else None

    def _send(self, status: int, data: bytes | None, start: int = 0, total: int = 0, body: bool = True) -> None:
        if data is None:
            self.send_error(404)
            return
        self._head(status, len(data), start, total)
        if body:
            self.wfile.write(data)

    def _head(self, status: int, length: int, start: int, total: int) -> None:
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{start + length - 1}/{total}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _break(self, fault: str, part: bytes, start: int, total: int) -> None:
        self._head(206, len(part) + (10 if fault == "promise" else 0), start, total)
        self.close_connection = True
        if fault == "trickle":
            for byte in part:
                if self.site.leaving.is_set():
                    return
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)
            return
        self.wfile.write(part if fault == "promise" else part[: len(part) // 2])
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, BrokenPipeError):  # a client that gave up
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass
