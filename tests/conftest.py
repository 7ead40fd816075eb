"""Tests that need something of the machine (root, a tool) are never left out in silence.

The summary says how many were not run and why. Under FLEXICLIP_REQUIRE_ALL=1, as .ci/run sets it, they fail.

What a test prints may hold names that are not UTF-8; pytest-xdist ends the whole run over them, so they are escaped in reports.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from collections.abc import Generator, Iterator
from typing import Any

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell that starts pytest in the background ignores Ctrl-C for it
    signal.signal(signal.SIGINT, signal.default_int_handler)

REQUIRE_ALL = "FLEXICLIP_REQUIRE_ALL"
BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")


def reason(report: Any) -> str:
    """Why a test, or a whole file, was skipped; xdist hands the place and the reason over as a list."""
    told = report.longrepr[2] if isinstance(report.longrepr, (tuple, list)) else str(report.longrepr)
    return str(told).removeprefix("Skipped: ")


def require(report: Any) -> None:
    """Make a skip a failure where every test must run."""
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get(REQUIRE_ALL, "0") not in ("", "0"):
        report.outcome = "failed"
        report.longrepr = f"{REQUIRE_ALL}={os.environ[REQUIRE_ALL]}, but this was not run: {reason(report)}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    report = yield
    require(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    report = yield
    require(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    return escaped((yield))


def escaped(data: Any) -> Any:
    """Plain data whose texts can be written as UTF-8: a lone surrogate becomes its escape."""
    if isinstance(data, str):
        return data.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(data, dict):
        return {escaped(key): escaped(value) for key, value in data.items()}
    return type(data)(map(escaped, data)) if isinstance(data, (list, tuple)) else data


def pytest_terminal_summary(terminalreporter: Any) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped:
        terminalreporter.section(f"{len(skipped)} not run on this machine ({REQUIRE_ALL}=1 makes that a failure)")
        for why, count in Counter(map(reason, skipped)).most_common():
            terminalreporter.line(f"{count}: {why}")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium, opened by playwright."""
    from playwright.sync_api import sync_playwright

    path = os.environ.get("FLEXICLIP_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    assert path, (
        f"no browser: scripts/test.sh installs one; or set FLEXICLIP_BROWSER, or put one of {', '.join(BROWSERS)} on PATH"
    )
    with sync_playwright() as run:
        opened = run.chromium.launch(executable_path=path, args=["--no-sandbox"], timeout=120_000)  # root has no sandbox
        yield opened
        opened.close()
