"""Shards that our writer writes, against tarfile and webdataset."""

from __future__ import annotations

import io
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest
import webdataset

from flexiclip.data.index import read_index
from flexiclip.data.shard_writer import ShardWriter, header

SAMPLES = [
    {"jpg": b"\xff\xd8" + bytes(range(256)) * 5, "txt": "eine Straße".encode(), "json": b"{}"},
    {"jpg": b"x" * 512, "txt": b"a caption"},  # exactly one block
    {"png": b"", "cls": b"7"},
]


@pytest.mark.parametrize("size", [0, 1, 512, 8**11 - 1])
def test_a_header_is_the_one_that_tarfile_writes(size: int) -> None:
    info = tarfile.TarInfo("000000017.jpg")
    info.size, info.mode, info.mtime = size, 0o444, 0
    assert header("000000017.jpg", size) == info.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(("name", "size"), [("", 1), ("x" * 101, 1), ("a", 8**11)])
def test_a_header_that_the_plain_layout_cannot_hold_is_refused(name: str, size: int) -> None:
    with pytest.raises(ValueError, match="does not fit into a plain tar header"):
        header(name, size)


def write(path: Path) -> Path:
    with ShardWriter(path) as shard:
        for number, members in enumerate(SAMPLES):
            shard.write(f"{number:09d}", members)
        assert not path.exists(), "it appears only at the end"
    return path


def test_a_shard_reads_the_same_everywhere(tmp_path: Path) -> None:
    path = write(tmp_path / "train-00000.tar")
    named = {f"{number:09d}.{name}": data for number, sample in enumerate(SAMPLES) for name, data in sample.items()}
    with tarfile.open(path) as tar:
        assert {info.name: tar.extractfile(info).read() for info in tar} == named  # type: ignore[union-attr]
    read = [{k: v for k, v in sample.items() if k[0] != "_"} for sample in webdataset.WebDataset(str(path), shardshuffle=False)]
    assert read == SAMPLES
    index = read_index(str(path))
    assert (len(index), index.damage) == (3, "")


def test_equal_samples_give_the_bytes_of_tarfile(tmp_path: Path) -> None:
    ours, theirs = write(tmp_path / "ours.tar"), io.BytesIO()
    with tarfile.open(fileobj=theirs, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, members in enumerate(SAMPLES):
            for name, data in members.items():
                info = tarfile.TarInfo(f"{number:09d}.{name}")
                info.size, info.mode = len(data), 0o444
                tar.addfile(info, io.BytesIO(data))
    assert ours.read_bytes() == theirs.getvalue()


def test_many_parts_and_large_ones_arrive_whole(tmp_path: Path) -> None:
    """More parts than one call of writev takes, and more bytes than are collected."""
    path, large = tmp_path / "train-00000.tar", bytes(range(256)) * 2**15
    with ShardWriter(path) as shard:
        for number in range(700):
            shard.write(f"{number:09d}", {"txt": str(number).encode()})
        shard.write("large", {"jpg": large})
        final = shard.final_bytes
    assert path.stat().st_size == final
    with tarfile.open(path) as tar:
        names = tar.getnames()
        assert names == [*(f"{number:09d}.txt" for number in range(700)), "large.jpg"]
        assert tar.extractfile("000000699.txt").read() == b"699"  # type: ignore[union-attr]
        assert tar.extractfile("large.jpg").read() == large  # type: ignore[union-attr]


def test_after_an_exception_or_discard_nothing_is_left(tmp_path: Path) -> None:
    with suppress(KeyboardInterrupt), ShardWriter(tmp_path / "a.tar") as shard:
        shard.write("a", {"jpg": b"x"})
        raise KeyboardInterrupt
    with ShardWriter(tmp_path / "b.tar") as shard:
        shard.discard()
    assert list(tmp_path.iterdir()) == []
