"""The tar index against webdataset's own reading, its cache, and damaged shards."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from shardkit import good_sample, write_samples

from flexiclip.data.index import index_shard, index_shards, read_index, split_name
from flexiclip.errors import UserError

FILES = {
    "a.jpg": b"1",
    "a.TXT": b"22",
    "dir/b.c/img.jpg": b"333",
    "dir/b.c/img.seg.png": b"4444",
    "dir/img.jpg": b"",
    "x" * 150 + ".jpg": b"5" * 700,
    "ümlaut.jpg": b"6" * 512,
    "a.jpg.again": b"7",
}
NOISE = {"noextension": b"n", ".hidden": b"n", "dir/.DS_Store": b"n", "__MACOSX/a.jpg": b"n", "__meta__": b"n"}


def write_tar(path: Path, files: dict[str, bytes], layout: int) -> None:
    with tarfile.open(path, "w", format=layout) as tar:
        folder = tarfile.TarInfo("dir")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("layout", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_the_index_finds_what_webdataset_reads(tmp_path: Path, layout: int) -> None:
    path = tmp_path / "x.tar"
    write_tar(path, {**FILES, **NOISE}, layout)
    index, content = read_index(str(path)), path.read_bytes()
    found = [
        {"__key__": index.key(i), **{ext: content[o : o + n] for ext, (o, n) in index.members(i).items()}}
        for i in range(len(index))
    ]
    expected = [
        {name: value for name, value in sample.items() if name not in ("__url__", "__local_path__")}
        for sample in webdataset.WebDataset(str(path), shardshuffle=False)
        if "__MACOSX" not in sample["__key__"] and not sample["__key__"].endswith("/")  # webdataset makes samples of dotfiles
    ]
    assert found == expected
    assert index.content_bytes == sum(map(len, FILES.values()))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.tar.gz", ("a", "tar.gz")),
        ("./a/b.JPG", ("./a/b", "jpg")),
        ("a.b/c.txt", ("a.b/c", "txt")),
        ("a.b/c", None),
        (".txt", None),
        ("__MACOSX/._a.jpg", None),
    ],
)
def test_split_name(path: str, expected: tuple[str, str] | None) -> None:
    assert split_name(path) == expected


def test_the_cache_is_used_and_dropped(tmp_path: Path) -> None:
    path = write_samples(tmp_path / "x.tar", [good_sample(n) for n in range(3)])
    cached = tmp_path / "x.tar.index.npz"
    first = index_shard(str(path))
    assert len(first) == 3
    # A mark in the cache shows that it, not the shard, is read.
    with np.load(cached) as data:
        arrays = dict(data)
    arrays["extensions"] = np.array([f"{e}x" for e in arrays["extensions"]])
    np.savez(cached, **arrays)
    assert set(index_shard(str(path)).extensions) == {"jpgx", "txtx"}

    write_samples(path, [good_sample(n) for n in range(5)])
    assert len(index_shard(str(path))) == 5
    cached.write_bytes(b"half a file")
    assert index_shard(str(path)).key(4) == "s0004"
    os.utime(path, ns=(1, 1))
    cached.unlink()
    assert len(index_shard(str(path))) == 5
    assert not list(tmp_path.glob("*.tmp"))


def test_a_named_cache_folder_holds_equal_names_apart(tmp_path: Path) -> None:
    paths = []
    for number, folder in enumerate("ab", 1):
        (tmp_path / folder).mkdir()
        paths.append(str(write_samples(tmp_path / folder / "x.tar", [good_sample(n) for n in range(number)])))
    for _ in range(2):
        assert [len(index) for index in index_shards(paths, str(tmp_path / "cache"))] == [1, 2]
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert not list(tmp_path.glob("?/*.npz"))


def test_a_place_that_cannot_be_written_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    path = write_samples(tmp_path / "x.tar", [good_sample(0)])
    (tmp_path / "x.tar.index.npz").mkdir()  # nothing can be renamed onto a folder, not even by root
    for _ in range(2):
        assert len(index_shard(str(path))) == 1
    assert [p.suffix for p in (tmp_path / "home" / "flexiclip").iterdir()] == [".npz"]


@pytest.mark.parametrize("kept", [0, 100, 512, 600, 3 * 512, 0.5, 0.9])
def test_a_truncated_shard_is_named(tmp_path: Path, kept: float) -> None:
    """Cuts inside a header, inside content, and between two members where tarfile itself sees nothing wrong."""
    whole = write_samples(tmp_path / "x.tar", [{"__key__": f"s{n}", "txt": b"x" * 512} for n in range(20)]).read_bytes()
    content = 20 * 1024
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole[: int(kept * content) if isinstance(kept, float) else kept])
    with pytest.raises(UserError, match=r"cut\.tar: damaged"):
        index_shard(str(cut))


def test_damage_in_the_middle_and_other_formats_are_named(tmp_path: Path) -> None:
    path = write_samples(tmp_path / "x.tar", [{"__key__": f"s{n}", "txt": b"x" * 512} for n in range(20)])
    content = bytearray(path.read_bytes())
    content[5 * 1024 : 5 * 1024 + 512] = b"\xff" * 512  # tarfile would end here in silence
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.tar: damaged or truncated at byte 5120"):
        index_shard(str(path))
    zipped = tmp_path / "y.tar"
    with tarfile.open(zipped, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    with pytest.raises(UserError, match=r"y\.tar: .*compressed"):
        index_shard(str(zipped))


def test_a_member_that_stands_twice_is_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("a.txt", "a.TXT"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(UserError, match="sample 'a' has two members 'txt'"):
        index_shard(str(tmp_path / "x.tar"))


def test_an_index_takes_some_sixty_bytes_a_sample(tmp_path: Path) -> None:
    members = {"jpg": b"", "txt": b"", "json": b""}
    path = write_samples(tmp_path / "x.tar", [{"__key__": f"{n:09d}", **members} for n in range(1000)])
    index = read_index(str(path))
    arrays = (index.key_bytes, index.key_first, index.first, index.extension, index.offset, index.size)
    assert sum(array.nbytes for array in arrays) / len(index) < 72
