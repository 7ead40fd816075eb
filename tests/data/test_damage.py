"""Shards that are damaged, vanish, change or repeat themselves: what is whole is used, the rest is named or refused."""

from __future__ import annotations

import io
import os
import random
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from kit.shards import good_sample, write_samples

from flexiclip.config import DataConfig
from flexiclip.data.dataset import TrainSources, open_sources
from flexiclip.data.reading import reopen
from flexiclip.data.remote import expand_shards
from flexiclip.errors import UserError

SAMPLES = [good_sample(n) for n in range(20)]


@pytest.fixture
def four(tmp_path: Path) -> str:
    """20 samples in four shards of 5: shard n holds s(5n) to s(5n+4)."""
    for n in range(4):
        write_samples(tmp_path / f"t-{n}.tar", SAMPLES[5 * n : 5 * n + 5])
    return str(tmp_path / "t-{0..3}.tar")


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"s0008.txt") + 100])


DAMAGES: dict[str, tuple[Callable[[Path], Any], int, str]] = {
    "truncated": (cut, 3, "damaged or truncated at byte"),
    "empty": (lambda path: path.write_bytes(b""), 0, "empty file"),
    "noise": (lambda path: path.write_bytes(random.Random(0).randbytes(5000)), 0, "not a plain tar file"),
    "text": (lambda path: path.write_bytes(b"<html>404</html>" * 100), 0, "not a plain tar file"),
    "zeros": (lambda path: path.write_bytes(b"\0" * 2**21), 0, "nothing but zeros"),
}


def epoch(loader_of: Any, config: DataConfig, sources: TrainSources, world: int = 1) -> list[str]:
    """The samples of the first epoch, in order, over all ranks; checked to be captioned as they should."""
    given = {"sources": sources, "global_batch_size": sources.samples, "steps": 1, "world": world}
    batches = [batch for rank in range(world) for batch in loader_of(config.train, rank=rank, **given)]
    for batch in batches:
        for name, caption in zip(batch.samples, batch.captions, strict=True):
            assert caption == f"caption number {int(name[-4:])}"
    return [name for batch in batches for name in batch.samples]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_gives_what_is_whole(four: str, loader_of: Any, damage: str) -> None:
    make, whole, reason = DAMAGES[damage]
    path = Path(expand_shards(four)[1])
    make(path)
    config = DataConfig(train=four)
    sources = open_sources(config, 3)
    assert sources.samples == 15 + whole
    (bad,) = sources.damaged
    assert (bad.shard, bad.key) == (str(path), "")
    assert reason in bad.reason
    assert bad.reason.endswith(f"({whole} samples before that are used)")
    names = epoch(loader_of, config, sources)
    lost = {f"t-1.tar/s{n:04d}" for n in range(5 + whole, 10)}
    assert sorted(names) == sorted({f"t-{n // 5}.tar/s{n:04d}" for n in range(20)} - lost)
    assert epoch(loader_of, config, open_sources(config, 3), world=3) == names  # 15 and 18 divide by 3


def test_how_many_damaged_shards_are_too_many(four: str, tmp_path: Path) -> None:
    """Two of four are an accident; of three and more, the share counts; none that is usable is always too few."""
    paths = [Path(path) for path in expand_shards(four)]
    for path in paths[:2]:
        path.write_bytes(b"")
    assert len(open_sources(DataConfig(train=four, max_bad_fraction=0.0), 0).damaged) == 2
    paths[2].write_bytes(b"")
    with pytest.raises(UserError, match=r"3 of 4 shards are damaged, more than data\.max_bad_fraction=0\.1; .*t-0\.tar: .*empty"):
        open_sources(DataConfig(train=four), 0)
    assert open_sources(DataConfig(train=four, max_bad_fraction=0.75), 0).samples == 5
    with pytest.raises(UserError, match=r"no shard can be used; the first, .*t-0\.tar: .*empty file"):
        open_sources(DataConfig(train=str(paths[0])), 0)


def vanish(path: Path) -> None:
    path.unlink()


def rewrite_in_place(path: Path) -> None:
    """Other samples of the same sizes at the same places: only names and times tell."""
    content = path.read_bytes()
    for n in range(5, 10):
        content = content.replace(b"s%04d" % n, b"z%04d" % n)
    blocks = [bytearray(content[i : i + 512]) for i in range(0, len(content), 512)]
    for block in blocks:
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
    path.write_bytes(b"".join(bytes(block) for block in blocks))


def replace_by_rename(path: Path) -> None:
    other = write_samples(path.with_name("other"), [good_sample(n) for n in range(50, 58)])
    os.replace(other, path)


CHANGES = {
    "vanished": (vanish, "cannot be read: .*No such file"),
    "rewritten": (rewrite_in_place, "the shard has changed since it was indexed"),
    "renamed": (replace_by_rename, "the shard has changed since it was indexed"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:100]), "cannot be read: short read"),
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("change", CHANGES)
def test_a_shard_that_changes_after_it_was_indexed(four: str, loader_of: Any, change: str, workers: int) -> None:
    """Its samples are substituted and named; none of the other file's is taken for one of them."""
    make, reason = CHANGES[change]
    config = DataConfig(train=four, window_shards=2)
    sources = open_sources(config, 3)
    reopen()
    (before,) = loader_of(four, global_batch_size=20, steps=1)
    make(Path(expand_shards(four)[1]))
    reopen()
    (batch,) = loader_of(four, global_batch_size=20, steps=1, sources=sources, workers=workers)
    lost = {name for name in before.samples if name.startswith("t-1")}
    for expected, found in zip(before.samples, batch.samples, strict=True):
        assert found == expected if expected not in lost else found[:3] in ("t-0", "t-2", "t-3")
    assert {f"t-1.tar/{bad['key']}" for bad in batch.bad} == lost
    assert all(torch.equal(a, b) for n, a, b in zip(before.samples, before.images, batch.images, strict=True) if n not in lost)

    assert all(re.match(reason, bad["reason"]) for bad in batch.bad), batch.bad


def test_an_object_that_changes_after_it_was_indexed(four: str, loader_of: Any, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in expand_shards(four):
        memory.pipe_file(f"/changing/{Path(path).name}", Path(path).read_bytes())
    config = DataConfig(train="memory://changing/*.tar", index_cache=str(tmp_path / "cache"))
    sources = open_sources(config, 3)
    rewrite_in_place(tmp_path / "t-1.tar")
    memory.pipe_file("/changing/t-1.tar", (tmp_path / "t-1.tar").read_bytes())
    (batch,) = loader_of(config.train, global_batch_size=20, steps=1, sources=sources)
    assert {bad["key"] for bad in batch.bad} == {f"s{n:04d}" for n in range(5, 10)}
    assert {bad["reason"] for bad in batch.bad} == {"the shard has changed since it was indexed"}


def test_a_file_that_this_process_holds_open_is_opened_anew(four: str, loader_of: Any) -> None:
    """The same process trains, the shard is replaced, and it is opened again: no read may come from the old file."""
    path = Path(expand_shards(four)[1])
    assert len(epoch(loader_of, DataConfig(train=four), open_sources(DataConfig(train=four), 3))) == 20
    replace_by_rename(path)
    config = DataConfig(train=four)
    names = epoch(loader_of, config, open_sources(config, 3))
    assert {name for name in names if name.startswith("t-1")} == {f"t-1.tar/s{n:04d}" for n in range(50, 58)}


def test_equal_keys_are_samples_of_their_own(tmp_path: Path, loader_of: Any) -> None:
    """In one shard and over two: each comes once an epoch, under a name of its own."""
    twice = write_samples(tmp_path / "a.tar", [good_sample(0), good_sample(0), good_sample(1), good_sample(0)])
    shutil.copy(twice, tmp_path / "b.tar")
    (batch,) = loader_of(str(tmp_path / "*.tar"), global_batch_size=8, steps=1)
    keys = ("s0000", "s0000#2", "s0001", "s0000#3")
    assert Counter(batch.samples) == Counter(f"{shard}.tar/{key}" for shard in "ab" for key in keys)
    assert Counter(batch.captions) == {"caption number 0": 6, "caption number 1": 2}


def test_members_that_do_not_stand_together_are_named(tmp_path: Path, loader_of: Any) -> None:
    """As webdataset reads them, they are two samples, each of which lacks something."""
    image, text = dict(good_sample(0)), dict(good_sample(0))
    del image["txt"], text["jpg"]
    path = write_samples(tmp_path / "x.tar", [image, good_sample(1), text])
    (batch,) = loader_of(str(path), global_batch_size=3, steps=1)
    assert set(batch.samples) == {"x.tar/s0001"}
    reasons = {bad["key"]: bad["reason"] for bad in batch.bad}
    assert reasons == {"s0000": "no caption: none of txt", "s0000#2": "no image: none of jpg, jpeg, png, webp"}


def test_large_members_between_are_not_read(tmp_path: Path, loader_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A film beside each image: image and caption come in two reads, and its bytes are never taken in."""
    taken: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, offset: taken.append(size) or pread(file, size, offset))
    for place, keys in enumerate((("jpg", "mp4", "txt"), ("mp4", "jpg", "txt"), ("jpg", "txt", "mp4"))):
        sample = {**good_sample(0), "mp4": b"x" * (2**20 + 5)}
        path = tmp_path / f"{place}.tar"
        with tarfile.open(path, "w") as tar:  # webdataset's writer would sort the members
            for key in keys:
                info = tarfile.TarInfo(f"s0000.{key}")
                info.size = len(sample[key])
                tar.addfile(info, io.BytesIO(sample[key]))
        (batch,) = loader_of(str(path), global_batch_size=1, steps=1)
        assert batch.captions == ["caption number 0"]
        assert not batch.bad
    assert len(taken) == 4, "two reads only where the film lies between"
    assert sum(taken) < 2**14
