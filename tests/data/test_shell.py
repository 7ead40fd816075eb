"""Shell commands run only where a recipe allows them: what could smuggle one in is tried, with a mark that it would leave."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec
import pytest
from kit.shards import good_sample, write_samples

from flexiclip.data.remote import expand_shards
from flexiclip.errors import UserError

COMMAND = "touch pwned; cat good.tar"
SMUGGLED = [
    f"pipe:{COMMAND}",
    f" pipe:{COMMAND}",
    f"PIPE:{COMMAND}",
    f"file://pipe:{COMMAND}",
    f"{{pipe:{COMMAND},good.tar}}",
    "{pipe:touch pwned; curl http://127.0.0.1:9/x,good.tar}",
    f"good.tar::pipe:{COMMAND}",
    f"filecache::pipe:{COMMAND}",
    f"filecache::pipe:{COMMAND}; echo ://",
    "pipe:touch pwned; echo ://::memory://set/good.tar",
    "reference::memory://set/evil.json",
    "zip://good.tar::memory://set/good.zip",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a good shard in it."""
    monkeypatch.chdir(tmp_path)
    write_samples(tmp_path / "good.tar", [good_sample(n) for n in range(4)])
    return tmp_path


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("spec", SMUGGLED)
def test_nothing_smuggles_a_command(folder: Path, loader_of: Any, spec: str, sequential: bool) -> None:
    for train in (spec, ("good.tar", spec)):
        with pytest.raises(UserError) as caught:
            list(loader_of(train, sequential=sequential, read_attempts=1))
        assert "\n" not in str(caught.value)
    assert not (folder / "pwned").exists()


@pytest.mark.parametrize("allow_shell", [False, True])
def test_the_name_of_a_file_is_no_command(folder: Path, loader_of: Any, allow_shell: bool) -> None:
    """A glob that runs in the working folder yields bare names; one of them looks like a command."""
    os.rename("good.tar", "pipe:touch pwned;.tar")
    for train in ("*.tar", "file://pipe:touch pwned;.tar"):
        (batch,) = loader_of(train, sequential=True, allow_shell=allow_shell, steps=1)
        assert set(batch.samples) <= {f"pipe:touch pwned;.tar/s{n:04d}" for n in range(4)}
        assert not batch.bad
    assert not (folder / "pwned").exists()


def test_the_name_of_an_object_is_no_chain(folder: Path) -> None:
    """fsspec would read `memory://trap/a::...` through whatever stands before the colons."""
    fsspec.filesystem("memory").pipe_file("/trap/reference::memory:x.tar", b"")
    with pytest.raises(UserError, match="may stand before ::"):
        expand_shards("memory://trap/*.tar")


def test_a_command_runs_where_it_is_allowed(folder: Path, loader_of: Any) -> None:
    (batch,) = loader_of(f"pipe:{COMMAND}", sequential=True, allow_shell=True, steps=1)
    assert {name.split("/")[-1] for name in batch.samples} <= {f"s{n:04d}" for n in range(4)}
    assert (folder / "pwned").exists()
    with pytest.raises(UserError, match=r"cannot seek: set data\.sequential=true"):
        list(loader_of(f"pipe:{COMMAND}", allow_shell=True))
