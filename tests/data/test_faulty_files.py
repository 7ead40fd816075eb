"""The web's worst images and captions, as real files in real shards: the right pixels by another way or the reason, in bounds."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.shards import encode, good_sample, write_samples
from PIL import Image

from flexiclip.config import TokenizerConfig
from flexiclip.data import images
from flexiclip.data.images import ImageError, decode_image, more_scans_than
from flexiclip.data.samples import open_samples
from flexiclip.data.tokenizers import build_tokenizer, train_sentencepiece

RNG = np.random.default_rng(5)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels: np.ndarray, bits: int, colour: int, *extra: bytes) -> bytes:
    """A PNG written by hand: pixels [H, W, C] of the file's own depth; colour: the format's colour type."""
    height, width = pixels.shape[:2]
    raw = pixels.astype(">u2" if bits == 16 else np.uint8).reshape(height, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in raw)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    image = (chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(image)


def on_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha.astype(np.float64)[..., None] / 255
    return rgb * share + 255 * (1 - share)


def hard_images() -> dict[str, tuple[bytes, np.ndarray, float]]:
    """Name -> (file, RGB [H, W, 3] as it should be, tolerance)."""
    small = RNG.integers(0, 256, (6, 5, 4), dtype=np.uint8)
    deep = RNG.integers(0, 65536, (6, 5, 4))
    cmyk = small.astype(np.float64)
    by_ink = (255 - cmyk[..., :3]) * (255 - cmyk[..., 3:]) / 255
    smooth = np.clip(np.stack(np.meshgrid(np.arange(24) * 8, np.arange(16) * 12), axis=-1), 0, 255)
    smooth = np.concatenate([smooth, np.full((16, 24, 1), 90)], axis=-1).astype(np.uint8)
    inks = Image.fromarray(np.concatenate([smooth, np.full((16, 24, 1), 40, np.uint8)], axis=-1), "CMYK")
    palette, alphas, picked = small[0, :, :3], small[1, :, 3], RNG.integers(0, 5, (4, 7))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    return {
        "CMYK TIFF": (encode(Image.fromarray(small, "CMYK"), "TIFF"), by_ink, 1),
        "CMYK JPEG": (encode(inks, "JPEG", quality=100), (255.0 - smooth) * (255 - 40) / 255, 4),
        "16-bit grey PNG": (png(deep[..., :1], 16, 0), np.repeat(deep[..., :1] / 257, 3, axis=-1), 0.51),
        "16-bit RGB PNG": (png(deep[..., :3], 16, 2), deep[..., :3] / 257, 1),
        "16-bit RGBA PNG": (png(deep, 16, 6), on_white(deep[..., :3] / 257, deep[..., 3] / 257), 2),
        "16-bit grey TIFF": (
            encode(Image.fromarray(deep[..., 0].astype(np.uint16)), "TIFF"),
            np.repeat(deep[..., :1] / 257, 3, axis=-1),
            0.51,
        ),
        "palette with transparency": (
            png(picked[..., None], 8, 3, chunk(b"PLTE", palette.tobytes()), chunk(b"tRNS", alphas.tobytes())),
            on_white(palette[picked], alphas[picked]),
            1,
        ),
        "grey with a transparent level": (
            png(small[..., :1], 8, 0, chunk(b"tRNS", struct.pack(">H", small[2, 3, 0]))),
            np.repeat(np.where(small[..., :1] == small[2, 3, 0], 255, small[..., :1]), 3, axis=-1),
            0,
        ),
        "EXIF-rotated JPEG": (
            encode(Image.fromarray(smooth), "JPEG", quality=100, subsampling=0, exif=exif),
            np.rot90(smooth, -1).astype(np.float64),
            4,
        ),
        "1x1 PNG": (png(small[:1, :1, :3], 8, 2), small[:1, :1, :3], 0),
        "1x1 GIF": (encode(Image.new("RGB", (1, 1), (0, 0, 255)), "GIF"), np.array([[[0, 0, 255]]]), 0),
        "animated WebP": (
            encode(
                Image.fromarray(smooth), "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", (24, 16), "red")]
            ),
            smooth,
            0,
        ),
    }


@pytest.mark.parametrize("name", hard_images())
def test_hard_images_have_the_right_pixels(name: str, tmp_path: Path, loader_of: Any) -> None:
    """In a shard, all of them named jpg: the content decides, not the extension."""
    data, expected, tolerance = hard_images()[name]
    shard = str(write_samples(tmp_path / "x.tar", [{**good_sample(0), "jpg": data}]))
    image = open_samples([shard], ("jpg",), ("txt",))[0].image
    assert image.mode == "RGB"
    np.testing.assert_allclose(np.asarray(image), expected, rtol=0, atol=tolerance)
    (batch,) = loader_of(shard, global_batch_size=1, steps=1, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    assert not batch.bad
    if image.size == (1, 1):
        assert (batch.images[0] == batch.images[0][:, :1, :1]).all()  # one colour, everywhere
        np.testing.assert_array_equal(batch.images[0][:, 0, 0].numpy(), expected[0, 0])


WRONG = {
    "a text named jpg": (b"<html>404 not found</html>", "UnidentifiedImageError"),
    "an SVG named jpg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "UnidentifiedImageError"),
    "a PDF named jpg": (b"%PDF-1.4\n" + b"x" * 99, "UnidentifiedImageError"),
    "a shell script": (b"#!/bin/sh\ntouch pwned\n", "UnidentifiedImageError"),
    "nothing": (b"", "UnidentifiedImageError"),
    "one byte": (b"\xff", "UnidentifiedImageError"),
    "half a JPEG": (good_sample(0)["jpg"][:-200], "truncated"),
    "half a PNG": (png(np.full((64, 64, 3), 7), 8, 2)[:-30], "truncated|broken"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_image_is_named(name: str, tmp_path: Path, loader_of: Any) -> None:
    data, reason = WRONG[name]
    shard = str(write_samples(tmp_path / "x.tar", [{**good_sample(0), "jpg": data}, good_sample(1)]))
    (batch,) = loader_of(shard, global_batch_size=2, steps=1)
    assert batch.samples == ["x.tar/s0001"] * 2
    (bad,) = batch.bad
    assert bad["key"] == "s0000"
    assert bad["reason"].startswith("image cannot be decoded: ")
    assert any(word in bad["reason"] for word in reason.split("|"))


def huge_png(side: int) -> bytes:
    """A black picture of side x side, one bit a pixel, compressed row by row."""
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + side // 8)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def bombs() -> dict[str, bytes]:
    """Small files that stand for much: pixels, text and profiles."""
    dot = np.zeros((1, 1, 1))
    zeros = zlib.compress(bytes(10**8), 9)
    wide = bytearray(encode(Image.new("L", (16, 16)), "JPEG"))
    place = wide.index(b"\xff\xc0") + 5
    wide[place : place + 4] = struct.pack(">HH", 20_000, 20_000)
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    webp = bytearray(encode(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    place = webp.index(b"VP8X") + 12
    webp[place : place + 6] = (16_000).to_bytes(3, "little") * 2
    gif = bytearray(encode(Image.new("P", (4, 4)), "GIF"))
    gif[6:10] = struct.pack("<HH", 20_000, 20_000)
    frame = bytearray(encode(Image.new("P", (4, 4)), "GIF"))
    place = frame.index(b",\0\0\0\0") + 5
    frame[place : place + 4] = struct.pack("<HH", 20_000, 20_000)
    return {
        "PNG": huge_png(20_000),
        "JPEG": bytes(wide),
        "WebP": bytes(webp),
        "GIF": bytes(gif),
        "GIF frame": bytes(frame),
        "zTXt": png(dot, 8, 0, chunk(b"zTXt", b"k\0\0" + zeros)),
        "iTXt": png(dot, 8, 0, chunk(b"iTXt", b"k\0\1\0\0\0" + zeros)),
        "many zTXt": png(dot, 8, 0, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**6), 9)) * 100),
        "iCCP": png(dot, 8, 0, chunk(b"iCCP", b"k\0\0" + zeros)),
    }


REFUSE = """
import sys
from pathlib import Path
from flexiclip.data import images
from flexiclip.data.images import ImageError, decode_image
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
for path in sorted(Path(sys.argv[1]).iterdir()):
    data = path.read_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = peak()
    try:
        decode_image(data, 16)
    except ImageError as error:
        print(peak() - before, path.name, error)
"""


def test_bombs_are_refused_without_their_memory(tmp_path: Path) -> None:
    """In a process of its own, whose memory is measured."""
    assert max(map(len, bombs().values())) < 120_000
    for name, data in bombs().items():
        (tmp_path / name).write_bytes(data)
    done = subprocess.run([sys.executable, "-c", REFUSE, str(tmp_path)], capture_output=True, text=True, check=True, timeout=100)
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert len(lines) == len(bombs()), done.stdout
    for kilobytes, reason in lines:
        assert int(kilobytes) < 16_000, (kilobytes, reason)
        assert any(word in reason for word in ("exceed", "too large", "Too much memory")), reason


def test_how_many_pixels_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """8192 x 8192, and half as many where the library holds the picture several times; here a hundred."""
    assert images.MAX_PIXELS == 8192 * 8192
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8192, 8193, 1, 0, 0, 0, 0))
    with pytest.raises(ImageError, match="8192 x 8193 exceeds 67108864 pixels"):
        decode_image(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    for kind, size, refused in (
        ("PNG", (10, 10), False),
        ("PNG", (10, 11), True),
        ("GIF", (101, 1), True),
        ("JPEG", (20, 5), False),
        ("WEBP", (10, 5), False),
        ("WEBP", (10, 6), True),
    ):
        data = encode(Image.new("RGB", size, "red"), kind)
        if not refused:
            assert decode_image(data).size == size
            continue
        with pytest.raises(ImageError, match=rf"{size[0]} x {size[1]} exceeds {50 if kind == 'WEBP' else 100} pixels"):
            decode_image(data)


def test_an_exif_that_lies_says_nothing_about_the_pixels() -> None:
    """A tag of 4 GB in 26 bytes: it is skipped."""
    entry = struct.pack(">HHHII", 1, 0x010F, 2, 0xFFFFFFF0, 26)
    pixels = RNG.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    image = decode_image(png(pixels, 8, 2, chunk(b"eXIf", b"MM\0*\0\0\0\x08" + entry + bytes(4))))
    np.testing.assert_array_equal(np.asarray(image), pixels)


def test_a_jpeg_that_paints_for_ever_is_refused() -> None:
    """A scan of twelve bytes, repeated: each costs a pass over the picture. Two minutes, were it decoded."""
    data = encode(Image.new("RGB", (1000, 1000)), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    began = time.monotonic()
    with pytest.raises(ImageError, match="more than 100 scans"):
        decode_image(data[:-2] + scan * 60_000 + b"\xff\xd9")
    assert time.monotonic() - began < 30
    assert decode_image(data[:-2] + scan * 50 + b"\xff\xd9").size == (1000, 1000)
    # A film behind the picture, as phones write it, may hold any bytes; and so may a comment inside.
    film = b"\xff\xda" * 500
    comment = b"\xff\xfe" + struct.pack(">H", 2 + len(film)) + film
    assert decode_image(data[:2] + comment + data[2:] + film).size == (1000, 1000)
    assert not more_scans_than(data[:2] + comment + data[2:] + film, 100)
    assert more_scans_than(data, 3)


LONG = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz", k=2**20))


@pytest.mark.parametrize("captions", [("txt",), ("json:caption",), ("json:many",), ("txt:lines",)])
def test_a_caption_of_a_megabyte_is_cut(tmp_path: Path, loader_of: Any, captions: tuple[str, ...]) -> None:
    """Memory and time stay in bounds: a batch carries 8,192 characters of it."""
    fields = {"caption": LONG, "many": [LONG[:300_000], LONG[300_000:600_000], "short"]}
    sample = {**good_sample(0), "txt": LONG.encode(), "json": json.dumps(fields).encode()}
    shard = str(write_samples(tmp_path / "x.tar", [sample]))
    began = time.monotonic()
    (batch,) = loader_of(shard, global_batch_size=8, steps=1, captions=captions)
    assert time.monotonic() - began < 30
    assert not batch.bad
    assert max(map(len, batch.captions)) == 8192
    assert LONG.startswith(batch.captions[0]) or batch.captions[0] in (LONG[300_000:308_192], "short")


def test_captions_of_many_megabytes_and_deep_json_are_named(tmp_path: Path, loader_of: Any) -> None:
    samples = [
        {**good_sample(0), "txt": b"x" * (2**24 + 1)},
        {**good_sample(1), "json": b"[" * 100_000},
        {**good_sample(2), "json": b'{"a":' * 100_000 + b"1" + b"}" * 100_000},
        good_sample(3),
    ]
    shard = str(write_samples(tmp_path / "x.tar", samples))
    (batch,) = loader_of(shard, global_batch_size=8, steps=1, captions=("txt", "json:caption"))
    assert set(batch.samples) == {"x.tar/s0003"}
    reasons = {bad["key"]: bad["reason"] for bad in batch.bad}
    assert reasons.keys() == {"s0000", "s0001", "s0002"}
    assert reasons["s0000"] == f"caption too long: txt has {2**24 + 1} bytes"
    assert all(reasons[key].startswith("json cannot be parsed") for key in ("s0001", "s0002"))


TEXTS = {
    "word": LONG,
    "blanks": " " * 2**20 + "fox",
    "marks": "!?" * 2**19,
    "words": "a red fox " * 100_000,
    "han": "漢字仮名" * 2**18,
}


@pytest.mark.parametrize("kind", ["sentencepiece", "clip"])
def test_tokenizers_take_a_megabyte_in_bounded_time(kind: str, tmp_path: Path) -> None:
    """Byte pairs in Python take the square of a word's length; the ids are those of the text's beginning."""
    config = TokenizerConfig(kind="clip", context_length=77)
    if kind == "sentencepiece":
        path = train_sentencepiece(["a red fox", "two blue birds"] * 9, tmp_path / "words.model", 40, lowercase=True)
        config = TokenizerConfig(kind="sentencepiece", path=str(path), context_length=32)
    tokenizer = build_tokenizer(config)
    began = time.monotonic()
    tokens = {name: tokenizer(text) for name, text in TEXTS.items()}
    assert time.monotonic() - began < 30
    assert (tokens["words"] == tokenizer("a red fox " * 100)).all()
    assert all((ids != tokenizer.pad_id).all() for name, ids in tokens.items() if name in ("word", "words"))
