"""Makes the inputs that fuzzing starts from: good and hostile files of each format, written by the libraries that users have.

The hostile files are known attacks (decompression bombs, members of 8 EB, alias bombs, paths with `..`). Mutations find others.
"""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from flexiclip.data.index import ShardIndex, pack
from scripts.fuzz.case import Case

_BLOCK = 512


def seeds(target: str) -> list[Case]:
    """Return the seeds of a target."""
    if target == "weights":
        from scripts.fuzz.weight_seeds import weight_seeds

        return weight_seeds()
    return {"index": _index_seeds, "samples": _sample_seeds, "recipe": _recipe_seeds}[target]()


def tar(files: Sequence[tuple[str, bytes]], layout: int = tarfile.PAX_FORMAT, pax: dict[str, str] | None = None) -> bytes:
    """Return a tar file as Python writes it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=layout) as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.pax_headers = pax or {}
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def tar_header(name: bytes, size: bytes, kind: bytes = b"0", link: bytes = b"", magic: bytes = b"ustar\00000") -> bytes:
    """Return a header block of 512 bytes with a correct checksum. size: the 12 bytes of the size field."""
    head = name.ljust(100, b"\0") + b"0000644\0" * 3 + size.ljust(12, b"\0") + b"0".rjust(11, b"0") + b"\0" + b" " * 8
    head = (head + kind + link.ljust(100, b"\0") + magic).ljust(_BLOCK, b"\0")
    return with_checksum(head)


def with_checksum(block: bytes) -> bytes:
    """Return a tar header with the checksum of its other bytes."""
    bare = block[:148] + b" " * 8 + block[156:]
    return bare[:148] + b"%06o\0 " % sum(bare) + bare[156:]


def png_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG of these chunks with correct checksums."""
    body = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def image(kind: str, mode: str = "RGB", size: tuple[int, int] = (24, 18), **options: Any) -> bytes:
    """Return a picture of noise as Pillow writes it."""
    noise = np.random.default_rng(len(kind)).integers(0, 255, (size[1], size[0], 4), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert("RGB").convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def _index_seeds() -> list[Case]:
    pair = [
        ("a/s0.jpg", image("JPEG")),
        ("a/s0.txt", b"a red fox"),
        ("a/s1.jpg", b"x" * 700),
        ("a/s1.json", b'{"caption": "owl"}'),
    ]
    end = b"\0" * 1024
    eight_exabytes = b"\x80" + b"\0" * 3 + struct.pack(">Q", 2**63 - 1)
    negative = b"\xff" * 8 + struct.pack(">i", -512)
    plain = tar_header(b"s.txt", b"00000000003") + b"abc".ljust(_BLOCK, b"\0")
    hostile = [
        tar_header(b"s.txt", eight_exabytes) + end,
        plain + tar_header(b"t.txt", negative) + plain + end,
        plain + tar_header(b"t.txt", b"77777777777") + plain + end,
        tar_header(b"././@LongLink", b"00000000005", b"L") + b"../x".ljust(_BLOCK, b"\0") + plain + end,
        tar_header(b"././@LongLink", b"77777777777", b"L") + plain + end,
        tar_header(b"././@LongLink", b"00000000010", b"L") * 50 + plain + end,
        tar_header(b"pax", b"77777777777", b"x") + plain + end,
        _sparse() + end,
        *(
            tar_header(b"l.txt", b"0", kind, b"../../etc/passwd") + plain + end
            for kind in (b"1", b"2", b"3", b"5", b"6", b"7", b"S")
        ),
        tar([("../../outside/evil.txt", b"x"), ("/etc/passwd.txt", b"y"), ("\x1b[2J.txt", b"z")]),
        b"\x1f\x8b" + plain,
        b"",
    ]
    paxes: list[dict[str, str]] = [
        {"size": "-1"},
        {"size": "99999999999999999999"},
        {"path": "../../outside/x.txt"},
        {"GNU.sparse.map": "0,1,2,-3", "GNU.sparse.size": "1000000000000", "GNU.sparse.name": "s.txt"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9" * 18},
        {"hdrcharset": "BINARY", "path": "\udcff.txt"},
    ]
    good = [tar(pair), tar(pair, tarfile.GNU_FORMAT), tar(pair, tarfile.USTAR_FORMAT), tar([("x" * 180 + ".txt", b"long")])]
    good += [tar([("s.txt", b"abc")] * 2, pax=pax) for pax in paxes]
    good.append(tar([("s.txt", b"abc")], tarfile.GNU_FORMAT) + tar([("t.txt", b"def")]))
    cases = [{"shard.tar": content} for content in (*good, *hostile)]
    return [*cases, *({"shard.tar": tar(pair), "shard.tar.index": cache} for cache in _caches(tar(pair)))]


def _sparse() -> bytes:
    """Return a GNU sparse file in the old format that claims to be 8 EB long."""
    block = bytearray(tar_header(b"s.txt", b"00000000003", b"S", magic=b"ustar  \0"))
    block[386:410] = b"00000000000\0" + b"00000000003\0"
    block[482] = 1  # an extended header follows, which announces another one, and so on
    block[483:495] = b"77777777777\0"
    return with_checksum(bytes(block)) + (b"00000000000\0" * 42).ljust(504, b"\0") + b"\1" + b"\0" * 7


def _caches(shard: bytes) -> list[bytes]:
    """Return index caches with the shard's time stamp: a good one, and others with wrong numbers."""

    offsets = [512, 2048, 3072, 5120]
    good: dict[str, Any] = {
        "key_bytes": np.frombuffer(b"s0s1", dtype=np.uint8),
        "key_first": np.array([0, 2, 4]),
        "first": np.array([0, 2, 4]),
        "extension": np.array([0, 1, 0, 1]),
        "offset": np.array(offsets),
        "size": np.array([700, 9, 700, 18]),
        "header": np.array([zlib.crc32(shard[offset - 512 : offset]) for offset in offsets]),
    }
    changes: list[dict[str, Any]] = [
        {},
        {"size": np.array([2**32 - 1] * 4)},
        {"offset": np.array([-(2**62)] * 4)},
        {"first": np.array([0, 2**31, 4])},
        {"extension": np.array([9] * 4)},
        {"key_first": np.array([0, 0, 0])},
        {"first": np.zeros(0)},
    ]
    packed = [pack(ShardIndex("shard.tar", ("jpg", "txt"), **(good | change)), f"{len(shard)}-1") for change in changes]
    return [*packed, packed[0].replace(b"[4, 3", b"[4e1,"), packed[0].replace(b"[4, 3", b"[-4,3")]


def _sample_seeds() -> list[Case]:
    caption = {"txt": b"a red fox"}
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures = [
        image("JPEG"),
        image("JPEG", "CMYK"),
        image("JPEG", "L", exif=exif.tobytes(), progressive=True),
        image("PNG"),
        image("PNG", "P"),
        image("PNG", "LA"),
        image("PNG", "1", (1, 1)),
        image("WEBP"),
        image("WEBP", "RGBA", lossless=True),
        image("GIF", "P", save_all=True, append_images=[Image.new("P", (24, 18), n) for n in range(3)]),
        image("TIFF", compression="tiff_lzw"),
        image("BMP"),
        image("PPM"),
        *_bombs(),
        b"",
    ]
    cases: list[Case] = [{"jpg": picture, **caption} for picture in pictures]
    texts = [
        {"json": b'{"caption": ["a", "b"], "a": {"b": "c"}}'},
        {"json": b"[" * 100_000},
        {"json": b'{"caption": ' * 5000},
        {"json": b'{"caption": "\\ud800"}'},
        {"json": b"1" * 5000},
        {"json": b'{"caption": NaN}', "lines.txt": b"one\ntwo\r\n\x85three"},
        {"txt": b"\xff\xfe", "json": b'{"caption": 1e999}'},
        {"txt": b" \n", "lines.txt": b"\n\n"},
        {"txt": b"x" * 100_000},
    ]
    return cases + [{"png": image("PNG", "RGB", (2, 2)), **text} for text in texts]


def _bombs() -> list[bytes]:
    """Return small picture files that claim to have very many pixels, or that contain very much text."""
    deflated = zlib.compress(b"\0" * 2_000_000)
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    small = struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0)
    pixels = (b"IDAT", zlib.compress(b"\0" * 14))
    jpeg = bytearray(image("JPEG"))
    place = jpeg.index(b"\xff\xc0")
    jpeg[place + 5 : place + 9] = b"\xff\xff\xff\xff"
    tiff = image("TIFF")
    return [
        png_chunks((b"IHDR", header), (b"IDAT", deflated), (b"IEND", b"")),
        png_chunks((b"IHDR", small), (b"zTXt", b"k\0\0" + zlib.compress(b"a" * 5_000_000)), pixels, (b"IEND", b"")),
        png_chunks((b"IHDR", small), (b"iCCP", b"k\0\0" + zlib.compress(b"a" * 5_000_000)), pixels, (b"IEND", b"")),
        png_chunks((b"IHDR", small), (b"eXIf", b"MM\0*\0\0\0\x08" + b"\xff" * 60), pixels, (b"IEND", b"")),
        png_chunks((b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 16, 6, 0, 0, 1)), pixels, (b"IEND", b"")),
        bytes(jpeg),
        b"GIF89a\xff\xff\xff\xff\x80\0\0" + b"\0" * 6 + b",\0\0\0\0\xff\xff\xff\xff\0\x08\x01\0\0;",
        b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0/\xff\xff\xff\x0f" + b"\0" * 8,
        tiff[:4] + struct.pack("<I", 8) + struct.pack("<H", 60000) + tiff[8:],
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60000, -60000, 1, 24, 0, 0, 0, 0, 0, 0),
        b"P6 99999 99999 65535\n\0\0",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n",
    ]


def _recipe_seeds() -> list[Case]:
    from importlib import resources
    from pathlib import Path

    folder = Path(str(resources.files("flexiclip_recipes")))
    installed = [path.read_bytes() for path in sorted(folder.glob("*.yaml"))]
    laughs = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
        b"%c: &%c [%s]\n" % (b, b, b", ".join([b"*%c" % a] * 9)) for a, b in zip(b"abcdefgh", b"bcdefghi", strict=True)
    )
    hostile = [
        laughs,
        b"model: &m {image: *m}\n",
        b"data: &d\n  train: *d\n",
        b"engine: {deepspeed: &x {a: &y [&z {b: 1}, *z]}}\nmodel: {<<: *x}\n",
        b"[" * 3000,
        b"seed: !!python/object/apply:os.system ['true']\n",
        b"seed: !!python/name:os.system\n",
        b"seed: " + b"9" * 5000 + b"\n",
        b"seed: 0x" + b"f" * 5000 + b"\n",
        b"seed: 1:60:60:60\nrun_dir: 2001-13-45\n",
        b"train: {steps: 9e999, save_every: '1e308 epochs'}\noptimizer: {lr: .inf, eps: .nan}\n",
        b"model: {image: {image_size: 99999999999999}}\npatch: {seqhw: [1]}\n",
        b"base: ../../../../etc/passwd\n",
        b"base: base\n",
        b"base: [1, 2]\n",
        b"base: '" + b"x" * 5000 + b"'\n",
        b'base: "\\0"\n',
        b"run_dir: ${HOME}/${NOT_SET_ANYWHERE:-${HOME}}\n",
        b"? {a: 1}\n: 2\n? [1]\n: 3\n",
        b"1: 2\nnull: 3\n.nan: 4\n",
        b"%YAML 9.9\n---\na: 1\n---\nb: 2\n",
        b"\xff\xfe\0a",
        b"tokenizer: {path: !!binary aGVsbG8=}\ndata: {train: !!set {a, b}}\n",
        b"seed: !!timestamp 2001-12-14t21:59:43.10-05:00\n",
        b"seed: !!int x\nrun_dir: !!float y\n",
    ]
    overrides = [
        b"train.steps=3 epochs",
        b"patch.seqhw=[5, 8]",
        b"data.train=[{shards: a.tar, weight: 2}]",
        b"=",
        b"a.b.c=&a [*a]",
    ]
    cases: list[Case] = [{"recipe.yaml": text} for text in (*installed, *hostile)]
    cases += [
        {"recipe.yaml": installed[0], "overrides.txt": b"\n".join(overrides[:count])} for count in range(1, len(overrides) + 1)
    ]
    return [
        *cases,
        {"recipe.yaml": b"base: base\n", "base.yaml": b"base: recipe\n"},
        {"recipe.yaml": json.dumps({"seed": 3}).encode()},
    ]
