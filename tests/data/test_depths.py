"""Pictures of more or fewer than 8 bits a channel, written byte by byte here, so that no library's idea of them is taken over."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from kit.shards import encode
from PIL import Image

from flexiclip.config import PreprocessConfig
from flexiclip.data.images import EvalTransform, ImageError, decode_image

WHITE = (255, 255, 255)


def png(rows: list[bytes], width: int, bits: int, kind: int, *chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), bits, kind, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunk(*each) for each in chunks) + body + chunk(b"IEND", b"")


def shorts(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


def trns(*values: int) -> tuple[bytes, bytes]:
    return b"tRNS", shorts(*values)


PALETTE = (b"PLTE", bytes([255, 0, 0, 0, 255, 0, 0, 0, 255]))
GREY, RGB, INDEXED = 0, 2, 3
# name -> (file, its pixels)
PNGS: dict[str, tuple[bytes, list[tuple[int, int, int]]]] = {
    "16-bit grey": (png([shorts(0x8000, 0xFFFF)], 2, 16, GREY), [(128, 128, 128), WHITE]),
    "16-bit grey, white transparent": (png([shorts(0x8000, 0xFFFF)], 2, 16, GREY, trns(0xFFFF)), [(128, 128, 128), WHITE]),
    "16-bit grey, black transparent": (png([shorts(0x8000, 0, 1)], 3, 16, GREY, trns(0)), [(128,) * 3, WHITE, (0, 0, 0)]),
    "16-bit grey, none transparent": (png([shorts(0x8000, 300)], 2, 16, GREY, trns(0x1234)), [(128, 128, 128), (1, 1, 1)]),
    "16-bit RGB": (
        png([shorts(0x8011, 0, 0, 0x8022, 0, 0)], 2, 16, RGB, trns(0x8011, 0, 0)),
        [WHITE, (128, 0, 0)],
    ),
    "16-bit RGB, the lower byte of another": (
        png([shorts(0x1100, 0, 0, 0x8011, 0, 0)], 2, 16, RGB, trns(0x8011, 0, 0)),
        [(17, 0, 0), WHITE],
    ),
    "8-bit RGB": (png([bytes([255, 0, 0, 0, 128, 0])], 2, 8, RGB, trns(255, 0, 0)), [WHITE, (0, 128, 0)]),
    "8-bit grey": (png([bytes([10, 200])], 2, 8, GREY, trns(10)), [WHITE, (200, 200, 200)]),
    "4-bit grey": (png([bytes([0x5A])], 2, 4, GREY, trns(5)), [WHITE, (170, 170, 170)]),
    "2-bit grey": (png([bytes([0b00011011])], 4, 2, GREY, trns(1)), [(0, 0, 0), WHITE, (170, 170, 170), WHITE]),
    "1-bit grey": (png([bytes([0b01000000])], 2, 1, GREY, trns(0)), [WHITE, WHITE]),
    "4-bit palette": (
        png([bytes([0x01, 0x20])], 3, 4, INDEXED, PALETTE, (b"tRNS", b"\x00\xff\x80")),
        [WHITE, (0, 255, 0), (127, 127, 255)],
    ),
    "2-bit palette": (
        png([bytes([0b00011000])], 3, 2, INDEXED, PALETTE, (b"tRNS", b"\xff\x00")),
        [(255, 0, 0), WHITE, (0, 0, 255)],
    ),
}


@pytest.mark.parametrize("name", PNGS)
def test_the_transparent_colour_of_a_png_alone_is_white(name: str) -> None:
    data, expected = PNGS[name]
    assert [tuple(pixel) for pixel in np.asarray(decode_image(data))[0].tolist()] == expected
    # So it is for a picture that a user has opened, loaded or not; of 16 bits a channel Pillow then has the upper ones alone.
    if name != "16-bit RGB":
        image = Image.open(io.BytesIO(data))
        pixels = EvalTransform((1, len(expected)), PreprocessConfig(resize="squash")).pixels(image)
        assert [tuple(pixel) for pixel in pixels[:, 0].T.tolist()] == expected


def test_an_upright_16_bit_png_keeps_its_transparent_colour() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = Image.fromarray(np.array([[0x8000, 0xFFFF, 7]], np.uint16))
    image = decode_image(encode(grey, "PNG", exif=exif, transparency=7))
    assert np.asarray(image)[:, 0, 0].tolist() == [128, 255, 255]


def tiff(values: np.ndarray[Any, Any] | bytes, width: int, bits: int, white_is_zero: bool = False, signed: bool = False) -> bytes:
    data = values if isinstance(values, bytes) else values.tobytes()
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: 0 if white_is_zero else 1, 277: 1, 278: 1, 279: len(data)}
    tags |= {273: 8 + 2 + 12 * (len(tags) + 2) + 4, 339: 2 if signed else 1}
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (tiff(np.array([0, 0x4000, 0x8000, 0xFFFF], "<u2"), 4, 16), [0, 64, 128, 255]),
        (tiff(np.array([0, 0x4000, 0x8000, 0xFFFF], "<u2"), 4, 16, white_is_zero=True), [255, 191, 127, 0]),
        (tiff(bytes([0, 64, 128, 255]), 4, 8, white_is_zero=True), [255, 191, 127, 0]),
        (tiff(bytes([0x00, 0x04, 0x00, 0x80, 0x0F, 0xFF]), 4, 12), [0, 64, 128, 255]),
        (tiff(np.array([0x8000, 0xFFFF], "<u4"), 2, 32), [128, 255]),
    ],
    ids=["16", "16, white is zero", "8, white is zero", "12", "32"],
)
def test_greys_of_a_tiff(data: bytes, expected: list[int]) -> None:
    image = np.asarray(decode_image(data))
    assert image[0, :, 0].tolist() == pytest.approx(expected, abs=0)
    assert (image == image[..., :1]).all()


@pytest.mark.parametrize(
    "data",
    [
        tiff(np.array([-5, 0x7FFF], "<i2"), 2, 16, signed=True),
        tiff(np.array([0, 2**31 - 1], "<u4"), 2, 32),
        tiff(np.array([0, 2**32 - 1], "<u4"), 2, 32),
    ],
)
def test_greys_without_an_agreed_range_are_refused(data: bytes) -> None:
    """They would come out all black or all white."""
    with pytest.raises(ImageError, match=r"greys of -?\d+ to \d+ have no agreed range"):
        decode_image(data)
