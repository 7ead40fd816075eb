"""Skipped tests are counted with their reasons, and fail where every test must run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parents[1]
SKIPS = """
    import pytest

    @pytest.fixture
    def disk():
        pytest.skip("no disk here")

    @pytest.mark.parametrize("number", [1, 2])
    def test_that_needs_a_disk(disk, number): ...

    @pytest.mark.skipif(True, reason="no second host")
    def test_that_needs_a_host(): ...

    def test_that_runs(): ...
"""
WHOLE_FILE = "import pytest\npytest.importorskip('no_such_module_at_all')\ndef test_of_it(): ..."


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project with our conftest.py, one test that runs and four that are skipped in three ways."""
    monkeypatch.setenv("FLEXICLIP_REQUIRE_ALL", "0")
    pytester.makeconftest((ROOT / "tests" / "conftest.py").read_text())
    pytester.makepyfile(test_some=SKIPS, test_none=WHOLE_FILE)
    return pytester


def test_terminal_summary_counts_what_was_not_run(project: pytest.Pytester) -> None:
    ran = project.runpytest_inprocess("-n", "1")  # reports come from another process, as with scripts/test.sh
    ran.assert_outcomes(passed=1, skipped=4)
    assert ran.ret == 0
    ran.stdout.fnmatch_lines(
        [
            "*4 not run on this machine (FLEXICLIP_REQUIRE_ALL=1 makes that a failure)*",
            "2: no disk here",
            "1: *",
        ]
    )
    for line in ("1: no second host", "1: could not import 'no_such_module_at_all': No module named 'no_such_module_at_all'"):
        assert line in ran.outlines


def test_a_skip_fails_where_all_are_required(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXICLIP_REQUIRE_ALL", "1")
    ran = project.runpytest_inprocess("-p", "no:xdist", "--continue-on-collection-errors")
    ran.assert_outcomes(passed=1, errors=4)
    assert ran.ret == 1
    for why in ("could not import 'no_such_module_at_all'*", "no disk here", "no second host"):
        ran.stdout.fnmatch_lines([f"*FLEXICLIP_REQUIRE_ALL=1, but this was not run: {why}"])


def test_continuous_integration_requires_all_tests(tmp_path: Path) -> None:
    """.ci/run tells scripts/test.sh so; a machine without root, or without apt, goes on with the tools that it has."""
    for name in (".ci", "scripts", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / ".ci" / "run").write_text((ROOT / ".ci" / "run").read_text())
    scripts = {
        "scripts/test.sh": 'echo "required $FLEXICLIP_REQUIRE_ALL $*"',
        "bin/id": "echo 1000",
        "bin/dirname": 'echo "${1%/*}"',
    }
    for name, line in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
    for path in [tmp_path / ".ci" / "run", *map(tmp_path.joinpath, scripts)]:
        path.chmod(0o755)

    def run(**environment: str) -> str:
        environment = {"PATH": str(tmp_path / "bin"), **environment}
        command = ["/bin/bash", str(tmp_path / ".ci" / "run"), "-k", "one"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert run() == "required 1 -k one\n"
    assert run(FLEXICLIP_REQUIRE_ALL="0") == "required 0 -k one\n"
    (tmp_path / "bin" / "id").write_text("#!/bin/sh\necho 0\n")
    (tmp_path / "bin" / "apt-get").write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/installed\n[ "$1" = update ]\n')
    (tmp_path / "bin" / "apt-get").chmod(0o755)
    assert run() == "required 1 -k one\n", "an installation that fails must leave it to the tests to say so"
    assert "iproute2 npm" in (tmp_path / "installed").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
