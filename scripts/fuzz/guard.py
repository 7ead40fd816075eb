"""Enforces the rules: a value or a documented error, limits of memory and time, and no access outside the folder.

Memory is limited through the address space of the process, so that an allocation that is too large fails at once. A MemoryError
in the chain of an error is a finding, even if the code turned it into a documented error. Files, processes, sockets and pickles
are watched through Python's audit events. A forbidden action is both refused and reported.
"""

from __future__ import annotations

import os
import re
import resource
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEMORY = 2**30  # bytes that one input may take
SECONDS = 10.0  # of processor time that one input may take

_RUNS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn", "pickle.find_class")
_SOCKETS = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request")
_WRITES = {"os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink", "os.chmod", "os.truncate", "shutil.rmtree"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_ALLOCATION = re.compile(r"not enough memory|can't allocate|cannot allocate|bad_alloc|MemoryError", re.IGNORECASE)
_VARIABLE = re.compile(r"/\S+|'[^']*'|\"[^\"]*\"|[-+\d.e]*\d\S*|\[.*\]|\{.*\}")


@dataclass(frozen=True)
class Outcome:
    """The outcome of an input. kind: `value`, `refused` (a documented error) or `finding`. label: the same for equal outcomes."""

    kind: str
    label: str
    detail: str = ""


class Watch:
    """Collects the actions that break the rules, from Python's audit events. A process has one, as audit hooks cannot be removed.

    root: the only folder that may be written. outside: a folder whose files no input may read.
    """

    def __init__(self, root: Path, outside: Path) -> None:
        self.root, self.outside = os.path.realpath(root), os.path.realpath(outside)
        self.active = False
        self.broken: list[str] = []
        sys.addaudithook(self._event)

    def _event(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.active:
            return
        wrong = self._judge(event, args)
        if wrong:
            self.broken.append(wrong)
            raise PermissionError(f"fuzz: {wrong}")

    def _judge(self, event: str, args: tuple[Any, ...]) -> str | None:
        if event in _RUNS or event in _SOCKETS:
            return f"{event} {str(args)[:200]}"
        if event == "open":
            path, _, flags = args
            if isinstance(path, int):
                return None
            if flags & _WRITING and not self._allowed(path):
                return f"write outside: {path!r}"
            return f"read outside: {path!r}" if self._is_under(path, self.outside) else None
        if event in _WRITES and not all(map(self._allowed, _paths(args))):
            return f"{event} outside: {str(args)[:200]}"
        return None

    def _allowed(self, path: Any) -> bool:
        return os.fsdecode(path) == os.devnull or self._is_under(path, self.root)

    def _is_under(self, path: Any, folder: str) -> bool:
        try:
            return (os.path.realpath(os.fsdecode(path)) + os.sep).startswith(folder + os.sep)
        except ValueError:  # a zero byte, which the call itself refuses
            return False


def _paths(args: tuple[Any, ...]) -> list[str]:
    """Return the paths among an event's arguments, joined to the open folder if the last argument is one (dir_fd)."""
    names = [os.fsdecode(arg) for arg in args[:2] if isinstance(arg, (str, bytes, os.PathLike))]
    folder = f"/proc/self/fd/{args[-1]}" if isinstance(args[-1], int) and args[-1] >= 0 else ""
    return [os.path.join(folder, name) for name in names]


def execute(run: Callable[[], str], documented: tuple[type[Exception], ...], watch: Watch) -> Outcome:
    """Call `run`, which runs a target on an input, under the rules."""
    watch.broken.clear()
    watch.active, started = True, time.process_time()
    error: BaseException | None = None
    try:
        label = run()
    except Exception as caught:
        error = caught
    finally:
        watch.active = False
    took = time.process_time() - started
    if watch.broken:
        return Outcome("finding", f"forbidden: {watch.broken[0].split(' ')[0]}", "\n".join(watch.broken))
    if took > SECONDS:
        return Outcome("finding", f"slow: {_place(error)}", f"{took:.1f} s of processor time")
    if error is None:
        return Outcome("value", label)
    if _lacked_memory(error) or not isinstance(error, documented):
        kind = "memory" if _lacked_memory(error) else type(error).__name__
        return Outcome("finding", f"{kind}: {_place(error)}", "".join(traceback.format_exception(error)))
    return Outcome("refused", f"{type(error).__name__}: {_VARIABLE.sub('_', str(error))[:70]}")


def limit_memory(more: int = MEMORY) -> None:
    """Limit the growth of this process's address space to this many bytes from now on."""
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + more, resource.RLIM_INFINITY))


def address_space() -> int:
    """Return the size of this process's address space in bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()


def _lacked_memory(error: BaseException) -> bool:
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        link = chain.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        if isinstance(link, MemoryError) or _ALLOCATION.search(str(link)):
            return True
        chain += [link.__cause__, link.__context__]
    return False


def _place(error: BaseException | None) -> str:
    """Return the innermost line of the library in the traceback, which tells one defect from another."""
    frames = traceback.extract_tb(error.__traceback__) if error else []
    ours = [frame for frame in frames if f"{os.sep}flexiclip{os.sep}" in frame.filename] or frames
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "nowhere"
