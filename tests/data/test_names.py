"""Names that are not UTF-8, as old file systems and archives hold them: of shards, of their folders, of samples."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from kit.shards import good_sample, write_samples

from flexiclip.cli import run
from flexiclip.data.check import check_shards
from flexiclip.data.index import index_shard
from flexiclip.data.reading import Retries, read_range

LATIN = os.fsdecode(b"caf\xe9")  # as Python passes on what it cannot decode


@pytest.fixture
def odd(tmp_path: Path) -> str:
    """A glob of a shard whose name, whose folder's name and whose samples' keys are Latin-1; the fourth caption is empty."""
    folder = tmp_path / f"{LATIN}-folder"
    folder.mkdir()
    with tarfile.open(folder / f"{LATIN}.tar", "w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape") as tar:
        for n in range(4):
            sample = good_sample(n)
            for member in ("jpg", "txt"):
                data = b"" if (n, member) == (3, "txt") else sample[member]
                info = tarfile.TarInfo(f"{LATIN}{n}.{member}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return str(folder / "*.tar")


def shard_of(pattern: str) -> str:
    return str(Path(pattern).with_name(f"{LATIN}.tar"))


@pytest.mark.parametrize("cache", [None, "cache"])
def test_names_that_are_not_utf8_are_indexed_and_cached(odd: str, tmp_path: Path, cache: str | None) -> None:
    place = None if cache is None else str(tmp_path / cache)
    for _ in range(2):  # the second time from the cache
        index = index_shard(shard_of(odd), place)
        assert [index.key(n) for n in range(4)] == [f"{LATIN}{n}" for n in range(4)]
    assert len(list((tmp_path / cache if cache else Path(odd).parent).glob("*.index"))) == 1


@pytest.mark.parametrize("sequential", [False, True])
def test_names_that_are_not_utf8_are_trained(odd: str, loader_of: Any, sequential: bool) -> None:
    (batch,) = loader_of(odd, global_batch_size=24, steps=1, workers=1, sequential=sequential)
    assert set(batch.samples) == {f"{LATIN}.tar/{LATIN}{n}" for n in range(3)}
    assert {bad["key"] for bad in batch.bad} == {f"{LATIN}3"}
    json.dumps(batch.bad).encode()  # a line of bad_samples.jsonl


def test_names_that_are_not_utf8_are_checked_and_printed(odd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal that takes nothing but UTF-8."""
    (bad,) = check_shards([shard_of(odd)], ("jpg",), ("txt",)).bad
    assert str(bad).endswith(r"caf\udce9.tar: caf\udce93: empty caption")
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="utf-8", errors="strict", write_through=True))
    assert run(["data", "check", odd]) == 1
    assert rb"caf\udce9.tar" in printed.getvalue()


def test_names_that_are_not_utf8_fail_as_others_do(tmp_path: Path) -> None:
    """A read that is tried again makes its pause from the name."""
    (tmp_path / f"{LATIN}.tar").symlink_to("/proc/self/mem")
    with pytest.raises(OSError, match=r"Input/output error.*\(2 attempts\)"):
        read_range(str(tmp_path / f"{LATIN}.tar"), 0, 4, Retries(2, 1))


def test_a_member_without_an_extension_of_utf8_is_another_kind(tmp_path: Path, loader_of: Any) -> None:
    path = write_samples(tmp_path / "a.tar", [good_sample(0)])
    with tarfile.open(path, "a", encoding="utf-8", errors="surrogateescape") as tar:
        tar.addfile(tarfile.TarInfo("s0000." + LATIN), io.BytesIO())
    assert index_shard(str(path)).extensions == ("jpg", "txt", LATIN)
    (batch,) = loader_of(str(path), global_batch_size=1, steps=1)
    assert batch.captions == ["caption number 0"]
