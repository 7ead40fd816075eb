"""The tar index against webdataset's own reading, its cache, and damaged shards."""

from __future__ import annotations

import io
import os
import re
import subprocess
import tarfile
from pathlib import Path

import pytest
import webdataset
from kit.shards import good_sample, write_samples

from flexiclip.data.index import index_shard, index_shards, read_index, require_whole, split_name
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
        {"__key__": index.key(i).split("#")[0], **{m.name: content[m.offset : m.end] for m in index.members(i)}}
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
    cached = tmp_path / "x.tar.index"
    first = index_shard(str(path))
    assert len(first) == 3
    # A mark in the cache shows that it, not the shard, is read.
    cached.write_bytes(cached.read_bytes().replace(b'"jpg", "txt"', b'"JPG", "TXT"'))
    assert set(index_shard(str(path)).extensions) == {"JPG", "TXT"}

    write_samples(path, [good_sample(n) for n in range(5)])
    assert len(index_shard(str(path))) == 5
    cached.write_bytes(b"half a file")
    assert index_shard(str(path)).key(4) == "s0004"
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("length", [b"-1", b"4e1", b"1" + b"0" * 30])
def test_an_index_with_impossible_lengths_is_dropped(tmp_path: Path, length: bytes) -> None:
    path = write_samples(tmp_path / "x.tar", [good_sample(0)])
    index_shard(str(path))
    cached = tmp_path / "x.tar.index"
    good = cached.read_bytes()
    cached.write_bytes(re.sub(rb'"lengths": \[\d+', b'"lengths": [' + length, good))
    assert cached.read_bytes() != good
    assert index_shard(str(path)).key(0) == "s0000"
    assert cached.read_bytes() == good, "it is written again"


def test_the_cache_is_dropped_with_another_time_or_another_layout(tmp_path: Path) -> None:
    """Another shard of the same size in the place of the first; and an index as an older version wrote it."""
    path = write_samples(tmp_path / "x.tar", [good_sample(0)])
    cached = tmp_path / "x.tar.index"
    assert index_shard(str(path)).key(0) == "s0000"
    whole = cached.read_bytes()
    marked = whole.replace(b'"jpg", "txt"', b'"JPG", "TXT"')
    cached.write_bytes(marked)
    assert index_shard(str(path)).extensions == ("JPG", "TXT"), "the mark shows that the cache is read"

    os.utime(path, ns=(1, 1))
    assert index_shard(str(path)).extensions == ("jpg", "txt")
    assert cached.read_bytes() != marked, "written anew"

    (version,) = re.findall(rb'"version": (\d+)', whole)
    renewed = cached.read_bytes().replace(b'"jpg", "txt"', b'"JPG", "TXT"')
    cached.write_bytes(renewed.replace(b'"version": ' + version, b'"version": %d' % (int(version) - 1)))
    assert index_shard(str(path)).extensions == ("jpg", "txt")


def test_the_cache_of_another_layout_is_dropped(tmp_path: Path) -> None:
    path = write_samples(tmp_path / "x.tar", [good_sample(0)])
    index_shard(str(path))
    cached = tmp_path / "x.tar.index"
    content = cached.read_bytes()
    assert b'"version": 3' in content
    cached.write_bytes(content.replace(b'"version": 3', b'"version": 2').replace(b'"jpg", "txt"', b'"JPG", "TXT"'))
    assert index_shard(str(path)).extensions == ("jpg", "txt")


def test_members_of_four_gigabytes_belong_to_no_sample(tmp_path: Path) -> None:
    """One of 2^32 - 1 bytes still does; the file has holes in place of the contents."""
    with open(tmp_path / "x.tar", "wb") as file:
        for name, size in (("a.bin", 2**32 - 1), ("a.txt", 3), ("b.bin", 2**32), ("b.txt", 4)):
            info = tarfile.TarInfo(name)
            info.size = size
            file.write(info.tobuf(tarfile.USTAR_FORMAT))
            file.seek(-(-size // 512) * 512, os.SEEK_CUR)
        file.write(bytes(1024))
    index = read_index(str(tmp_path / "x.tar"))
    assert not index.damage
    assert [(index.key(n), [(m.name, m.size) for m in index.members(n)]) for n in range(len(index))] == [
        ("a", [("bin", 2**32 - 1), ("txt", 3)]),
        ("b", [("txt", 4)]),
    ]


def test_a_named_cache_folder_holds_equal_names_apart(tmp_path: Path) -> None:
    paths = []
    for number, folder in enumerate("ab", 1):
        (tmp_path / folder).mkdir()
        paths.append(str(write_samples(tmp_path / folder / "x.tar", [good_sample(n) for n in range(number)])))
    for _ in range(2):
        assert [len(index) for index in index_shards(paths, str(tmp_path / "cache"))] == [1, 2]
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert not list(tmp_path.glob("?/*.index"))


def test_a_place_that_cannot_be_written_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    path = write_samples(tmp_path / "x.tar", [good_sample(0)])
    (tmp_path / "x.tar.index").mkdir()  # nothing can be renamed onto a folder, not even by root
    for _ in range(2):
        assert len(index_shard(str(path))) == 1
    assert [p.suffix for p in (tmp_path / "home" / "flexiclip").iterdir()] == [".index"]


@pytest.mark.parametrize(
    ("kept", "whole"), [(0, 0), (100, 0), (512, 0), (600, 0), (1536, 1), (2000, 1), (10240, 10), (20480, 20)]
)
def test_of_a_truncated_shard_the_whole_samples_are_kept(tmp_path: Path, kept: int, whole: int) -> None:
    """Cuts inside a header, inside content, and between two members where tarfile itself sees nothing wrong; 1024 bytes each."""
    content = write_samples(tmp_path / "x.tar", [{"__key__": f"s{n}", "txt": b"x" * 512} for n in range(20)]).read_bytes()
    cut = tmp_path / "cut.tar"
    cut.write_bytes(content[:kept])
    for _ in range(2):  # the second time from the cache
        index = index_shard(str(cut))
        assert [index.key(n) for n in range(len(index))] == [f"s{n}" for n in range(whole)]
        assert index.damage.startswith("damaged")
    with pytest.raises(UserError, match=r"cut\.tar: damaged"):
        require_whole([index])


def test_the_sample_at_the_damage_counts_only_with_all_its_members(tmp_path: Path) -> None:
    path = write_samples(tmp_path / "x.tar", [{"__key__": f"s{n}", "cls": b"1", "txt": b"x"} for n in range(4)])
    path.write_bytes(path.read_bytes()[: 7 * 1024])  # s3 ends after its first member
    index = read_index(str(path))
    assert [index.key(n) for n in range(len(index))] == ["s0", "s1", "s2"]


def test_damage_in_the_middle_and_other_formats_are_named(tmp_path: Path) -> None:
    path = write_samples(tmp_path / "x.tar", [{"__key__": f"s{n}", "txt": b"x" * 512} for n in range(20)])
    content = bytearray(path.read_bytes())
    content[5 * 1024 : 5 * 1024 + 512] = b"\xff" * 512  # tarfile would end here in silence
    path.write_bytes(content)
    index = read_index(str(path))
    assert index.damage == "damaged or truncated at byte 5120: fetch or write it again"
    assert len(index) == 5
    zipped = tmp_path / "y.tar"
    with tarfile.open(zipped, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    assert "compressed" in read_index(str(zipped)).damage


def test_what_follows_the_end_is_damage(tmp_path: Path) -> None:
    """tarfile takes the first zeros for the end: of a file appended to another, and of a copy that was never finished."""
    path = write_samples(tmp_path / "x.tar", [{"__key__": f"s{n}", "txt": b"x"} for n in range(20)])
    whole = path.read_bytes()
    path.write_bytes(whole + whole)
    assert "more data follows the end mark at byte 20480" in read_index(str(path)).damage
    path.write_bytes(whole[:5120] + b"\0" * 2**21)
    index = read_index(str(path))
    assert "nothing but zeros from byte 5120 on" in index.damage
    assert len(index) == 5
    path.write_bytes(whole + b"\0" * 2**19)  # a writer's blocking factor
    assert not read_index(str(path)).damage


def test_equal_keys_are_told_apart(tmp_path: Path) -> None:
    """Neighbours that repeat a member, and members of one sample that do not stand together."""
    names = ["a.txt", "a.cls", "a.txt", "a.cls", "b.txt", "a#2.txt", "a.TXT", "b.cls"]
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    index = read_index(str(tmp_path / "x.tar"))
    assert [(index.key(n), [m.name for m in index.members(n)]) for n in range(len(index))] == [
        ("a", ["txt", "cls"]),
        ("a#2", ["txt", "cls"]),
        ("b", ["txt"]),
        ("a#2#2", ["txt"]),
        ("a#3", ["txt"]),
        ("b#2", ["cls"]),
    ]


def test_sparse_members_are_no_samples(tmp_path: Path) -> None:
    """GNU tar's own: their content does not stand in one piece."""
    with open(tmp_path / "a.txt", "wb") as file:
        file.write(b"x")
        file.truncate(2**22)
        file.seek(0, 2)
        file.write(b"y")
    (tmp_path / "b.txt").write_bytes(b"fox")
    for layout in ("gnu", "posix"):
        subprocess.run(["tar", "--sparse", f"--format={layout}", "-cf", "x.tar", "a.txt", "b.txt"], cwd=tmp_path, check=True)
        assert (tmp_path / "x.tar").stat().st_size < 2**20, "tar did not store it sparse"
        index = read_index(str(tmp_path / "x.tar"))
        assert [index.key(n) for n in range(len(index))] == ["b"]
        assert not index.damage


def test_an_index_takes_some_seventy_bytes_a_sample(tmp_path: Path) -> None:
    members = {"jpg": b"", "txt": b"", "json": b""}
    path = write_samples(tmp_path / "x.tar", [{"__key__": f"{n:09d}", **members} for n in range(1000)])
    index = read_index(str(path))
    arrays = (index.key_bytes, index.key_first, index.first, index.extension, index.offset, index.size, index.header)
    assert sum(array.nbytes for array in arrays) / len(index) < 72
