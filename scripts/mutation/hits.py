"""Extends mutmut, as a pytest plugin, for tests that start ranks and for fixtures that live as long as the session.

mutmut runs each mutant against the tests that called its function, and counts the calls inside pytest's own process. With this
plugin
- calls in forked ranks are counted for the test that started them;
- calls while a fixture is made are counted for every test that uses the fixture, not only for the first, and its time is shared
  between them;
- caches are emptied between tests, so that a call counts for each test that would make it;
- what the tests import is imported once, before the first mutant, and not again for each mutant;
- ranks are forked from pytest's process, which has imported what they need, instead of from a new server for each mutant;
- the child processes of a mutant that runs out of time are killed too.
"""

from __future__ import annotations

import ctypes
import importlib
import multiprocessing.context
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import _lru_cache_wrapper
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from mutmut.state import state

PRELOAD = "MUTATION_PRELOAD"
"""Environment variable with the modules that ranks import, separated by commas. They are imported before the first mutant."""

IMPORTED = Path(os.environ.get("MUTATION_IMPORTED", "imported"))
"""The file with the modules that the tests imported, one per line (core.py)."""

TIMEOUT = 36
"""mutmut's exit code for a mutant that ran out of time."""

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of linux/prctl.h
_libc = ctypes.CDLL(None)


class SharedHits(set[str]):
    """The names of functions that were called, including calls in forked processes, which append them to a file."""

    def __init__(self) -> None:
        super().__init__()
        self.owner = os.getpid()
        self.file = Path.cwd() / f"hits-{self.owner}"  # in .mutation/mutants

    def add(self, name: str) -> None:
        """Add a name. mutmut does this for each call of a function that has mutants."""
        if name not in self:
            super().add(name)
            if os.getpid() != self.owner:
                with open(self.file, "a") as file:
                    file.write(name + "\n")

    def collect(self) -> None:
        """Add the names that other processes have written."""
        if self.file.exists():
            self.update(self.file.read_text().split())
            self.file.unlink()


class Hits:
    """Counts the calls of tests and of fixtures."""

    def __init__(self) -> None:
        self.hits = state()._stats = SharedHits()
        self.of_fixture: dict[int, set[str]] = {}
        self.seconds: dict[int, float] = {}
        self.users: dict[int, list[str]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[Any]:
        """Store the calls of a fixture, and the time that it takes."""
        self.hits.collect()
        before, began = set(self.hits), time.monotonic()
        self.hits.clear()
        try:
            return (yield)
        finally:
            self.hits.collect()
            self.of_fixture[id(fixturedef)] = set(self.hits)
            self.seconds[id(fixturedef)] = self.seconds.get(id(fixturedef), 0.0) + time.monotonic() - began
            self.hits.update(before)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        """Empty all caches, so that calls that a cache would answer are counted too."""
        for name, module in list(sys.modules.items()):
            if name.startswith("flexiclip"):
                for value in vars(module).values():
                    if isinstance(value, _lru_cache_wrapper):
                        value.cache_clear()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self, item: Any) -> None:
        """Add the calls of the test's fixtures to its own. mutmut reads them in its own hook, after this one."""
        self.hits.collect()
        for name in item.fixturenames:
            for fixturedef in item._fixtureinfo.name2fixturedefs.get(name, ()):
                self.hits.update(self.of_fixture.get(id(fixturedef), ()))
                self.users.setdefault(id(fixturedef), []).append(item.nodeid)

    def pytest_sessionfinish(self) -> None:
        """Divide the time of a fixture between its tests, and store which modules have been imported.

        mutmut sorts tests by their time, and the time limit of a mutant is their sum.
        """
        IMPORTED.write_text("\n".join(name for name in sys.modules if name != "__main__"))
        for fixture, tests in self.users.items():
            for test in tests:
                state().duration_by_test[test] += self.seconds.get(fixture, 0.0) / len(tests)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Make ranks fork from this process, and import what tests and ranks need.

    This runs before a conftest.py can ask for a server. The tests import what cannot be imported by its name alone.
    """
    contexts = multiprocessing.context._concrete_contexts  # type: ignore[attr-defined]
    for method in ("forkserver", "spawn"):
        contexts[method] = contexts["fork"]
    for name in filter(None, os.environ.get(PRELOAD, "").split(",")):
        importlib.import_module(name)
    for name in IMPORTED.read_text().split("\n") if IMPORTED.exists() else ():
        with suppress(Exception):
            importlib.import_module(name)


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the process for what mutmut is about to do."""
    if os.environ.get("MUTANT_UNDER_TEST") == "stats":
        config.pluginmanager.register(Hits())
    elif "__mutmut_" in os.environ.get("MUTANT_UNDER_TEST", ""):
        os.register_at_fork(after_in_child=_die_with_parent)
        signal.signal(signal.SIGXCPU, _out_of_time)


def _die_with_parent() -> None:
    _libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def _out_of_time(number: int, frame: FrameType | None) -> None:
    for pid in reversed(_descendants(os.getpid())[1:]):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    os._exit(TIMEOUT)


def _descendants(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(found for child in children for found in _descendants(int(child)))]
