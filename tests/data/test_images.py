"""Decoding every kind of image, and the transforms against torchvision and open_clip.

Pictures of more or fewer than 8 bits a channel are written byte by byte here, so that no library's idea of them is taken over.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from kit.shards import encode
from PIL import Image, ImageOps

from flexiclip.config import PreprocessConfig
from flexiclip.data import images
from flexiclip.data.images import EvalTransform, ImageError, TrainTransform, decode_image, normalize
from flexiclip.draws import Stream

GRADIENT = np.stack([*np.meshgrid(np.arange(0, 240, 10), np.arange(0, 200, 10)), np.full((20, 24), 90)], axis=-1).astype(np.uint8)


def pixel(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    found = image.getpixel((x, y))
    assert isinstance(found, tuple)
    return found


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    """The stored picture is the upright one under the inverse of what the tag asks for."""
    upright = Image.fromarray(GRADIENT)
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's numbers: flips, rotations (anticlockwise), transposes
    stored = upright.transpose(Image.Transpose(inverse[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(np.asarray(decode_image(encode(stored, "PNG", exif=exif))), GRADIENT)


def test_exif_that_pillow_cannot_write_again_still_turns_the_image() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, (72, 1)
    damaged = exif.tobytes().replace(b"\x01\x1a\x00\x05", b"\x01\x1a\x00\x02")  # the resolution, as a text
    stored = encode(Image.fromarray(GRADIENT).transpose(Image.Transpose.ROTATE_90), "PNG", exif=damaged)
    with pytest.raises(TypeError):
        ImageOps.exif_transpose(Image.open(io.BytesIO(stored)))
    assert np.array_equal(np.asarray(decode_image(stored)), GRADIENT)


def test_transparency_becomes_white() -> None:
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[0, 0] = (200, 100, 0, 128)
    image = decode_image(encode(Image.fromarray(rgba)))
    assert image.mode == "RGB"
    assert pixel(image, 1, 1) == (255, 255, 255)
    assert pixel(image, 0, 0) == pytest.approx((227, 177, 127), abs=1)
    grey = np.array([[[10, 0], [10, 255]]], np.uint8)
    image = decode_image(encode(Image.fromarray(grey, "LA")))
    assert (pixel(image, 0, 0), pixel(image, 1, 0)) == ((255,) * 3, (10,) * 3)
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putdata([0, 1])
    image = decode_image(encode(palette, "PNG", transparency=0))
    assert (pixel(image, 0, 0), pixel(image, 1, 0)) == ((255, 255, 255), (0, 0, 255))
    image = decode_image(encode(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG", transparency=(1, 2, 3)))
    assert pixel(image, 0, 0) == (255, 255, 255)


def test_sixteen_bits_are_scaled() -> None:
    grey = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    assert np.asarray(decode_image(encode(Image.fromarray(grey))))[0, :, 0].tolist() == [0, 1, 128, 255]
    assert np.asarray(decode_image(encode(Image.fromarray(grey), "TIFF")))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_decode_image_converts_other_modes(mode: str) -> None:
    kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    for colour, expected in (("white", 255), ("black", 0)):
        image = decode_image(encode(Image.new("RGB", (3, 2), colour).convert(mode), kind))
        assert image.mode == "RGB"
        assert np.abs(np.asarray(image).astype(int) - expected).max() < 3


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {}))
        assert pixel(decode_image(data), 0, 0) == pytest.approx((255, 0, 0), abs=1), kind


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_truncated_files_are_errors(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    data = encode(noise, kind)
    decode_image(data)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(ImageError):
            decode_image(data[: int(share * len(data))])


def test_why_bytes_are_no_image_names_no_object_of_ours() -> None:
    for content, said in (
        (b"<!DOCTYPE html><html>", "UnidentifiedImageError: cannot identify image file, it is a web page, as servers send"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a Git LFS pointer"),
        (b"", "it is empty"),
        (bytes(range(200, 256)), "UnidentifiedImageError: cannot identify image file"),
        (encode(Image.new("RGB", (64, 64)), "PNG")[:60], ""),
        (encode(Image.new("RGB", (64, 64)), "JPEG")[:300], ""),
    ):
        with pytest.raises(ImageError) as error:
            decode_image(content)
        assert said in str(error.value)
        assert " object at 0x" not in str(error.value)


def test_decode_image_refuses_what_is_no_usable_image(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match="float pixels"):
        decode_image(encode(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"))
    with pytest.raises(ImageError, match="cannot identify"):
        decode_image(encode(Image.new("RGB", (4, 4)), "EPS"))  # Pillow would start Ghostscript
    monkeypatch.setattr(images, "MAX_PIXELS", 15)
    with pytest.raises(ImageError, match="4 x 4 exceeds 15 pixels"):
        decode_image(encode(Image.new("RGB", (4, 4))))
    monkeypatch.setattr(images, "MAX_PIXELS", 31)
    for kind in {"WEBP", "AVIF"} & Image.SAVE.keys():  # half as many; older Pillows write no AVIF
        with pytest.raises(ImageError, match="4 x 4 exceeds 15 pixels"):
            decode_image(encode(Image.new("RGB", (4, 4)), kind))
        decode_image(encode(Image.new("RGB", (3, 4)), kind))
    decode_image(encode(Image.new("RGB", (4, 4))))


def test_a_large_jpeg_is_decoded_small() -> None:
    data = encode(Image.fromarray(GRADIENT).resize((480, 400)), "JPEG")
    assert decode_image(data).size == (480, 400)
    assert decode_image(data, min_side=100).size == (120, 100)
    assert decode_image(data, min_side=101).size == (240, 200)
    assert decode_image(data, min_side=1000).size == (480, 400)


def photo(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width * height).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(37, 91), (91, 37), (64, 64), (48, 48), (31, 29), (200, 151), (301, 77), (49, 48)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_shortest_equals_torchvision(size: tuple[int, int], interpolation: str) -> None:
    from torchvision.transforms.v2 import functional as tv

    image = photo(*size)
    resized = tv.resize(image, [48], interpolation=getattr(tv.InterpolationMode, interpolation.upper()))
    expected = tv.pil_to_tensor(tv.center_crop(resized, [48, 48]))
    found = EvalTransform((48, 48), PreprocessConfig(resize="shortest", interpolation=interpolation)).pixels(image)  # type: ignore[arg-type]
    assert found.dtype == torch.uint8
    assert torch.equal(found, expected)


@pytest.mark.parametrize("resize", ["shortest", "squash"])
def test_the_whole_transform_equals_open_clips(resize: str) -> None:
    from open_clip import image_transform

    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    theirs = image_transform(48, is_train=False, mean=mean, std=std, resize_mode=resize)
    ours = EvalTransform((48, 48), PreprocessConfig(mean=mean, std=std, resize=resize))  # type: ignore[arg-type]
    for size in ((37, 91), (200, 151)):
        assert torch.equal(ours(photo(*size)), theirs(photo(*size)))


def test_a_rectangle_is_covered_and_centred() -> None:
    transform = EvalTransform((30, 60), PreprocessConfig())
    for size in ((200, 50), (50, 200), (61, 30), (7, 5)):
        assert transform.pixels(photo(*size)).shape == (3, 30, 60)
    left, right = np.zeros((60, 60, 3), np.uint8), np.full((60, 60, 3), 255, np.uint8)
    image = Image.fromarray(np.concatenate([left, right], axis=1))
    pixels = transform.pixels(image.convert("P"))
    assert pixels[:, :, :28].max() < 20
    assert pixels[:, :, 32:].min() > 235


def test_normalize() -> None:
    pixels = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 2, 2)
    expected = (pixels.double() / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    for images_ in (pixels, pixels.float() / 255):
        found = normalize(images_, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
        assert found.dtype == torch.float32
        assert torch.allclose(found.double(), expected, atol=1e-6)


def test_crops_have_the_area_and_shape_asked_for() -> None:
    """The pixel values tell the crop: red counts columns, green rows; their span over the output gives its sides."""
    x, y = np.meshgrid(np.arange(200), np.arange(160))
    image = Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))
    transform = TrainTransform((40, 40), (0.2, 0.6), (0.75, 4 / 3), False, "bilinear")
    areas, ratios, lefts = [], [], []
    for seed in range(300):
        pixels = transform(image, Stream(seed)).double()
        width, height = (float(pixels[c].max() - pixels[c].min()) * 40 / 39 for c in (0, 1))
        areas.append(width * height / (200 * 160))
        ratios.append(width / height)
        lefts.append(float(pixels[0].min()) / (200 - width))
    assert 0.18 < min(areas) < 0.24
    assert 0.55 < max(areas) < 0.65
    assert np.mean(areas) == pytest.approx(0.4, abs=0.03)
    assert np.exp(np.mean(np.log(ratios))) == pytest.approx(1, abs=0.03)
    assert min(ratios) > 0.72
    assert max(ratios) < 1.40
    assert np.mean(lefts) == pytest.approx(0.5, abs=0.05)


def test_crops_of_extreme_images_and_whole_images() -> None:
    whole = TrainTransform((20, 24), (1.0, 1.0), (1.0, 1.0), False, "bilinear")
    assert np.array_equal(whole(Image.fromarray(GRADIENT), Stream(0)), GRADIENT.transpose(2, 0, 1))
    for size in ((500, 2), (2, 500), (1, 1)):
        pixels = TrainTransform((8, 12), (0.9, 1.0), (0.9, 1.1), False, "bicubic")(photo(*size), Stream(1))
        assert (pixels.shape, pixels.dtype) == ((3, 8, 12), torch.uint8)


def test_half_the_views_are_flipped() -> None:
    transform = TrainTransform((20, 24), (1.0, 1.0), (1.0, 1.0), True, "bilinear")
    views = [transform(Image.fromarray(GRADIENT), Stream(seed)) for seed in range(200)]
    flipped = [np.array_equal(view.flip(2), GRADIENT.transpose(2, 0, 1)) for view in views]
    assert 70 < sum(flipped) < 130
    assert all(f or np.array_equal(v, GRADIENT.transpose(2, 0, 1)) for f, v in zip(flipped, views, strict=True))


def test_min_side_never_enlarges_the_smallest_crop() -> None:
    transform = TrainTransform((64, 64), (0.25, 1.0), (0.75, 4 / 3), False, "bilinear")
    side = transform.min_side
    assert side == math.ceil(64 / math.sqrt(0.25 * 0.75))
    narrowest = math.sqrt(side * side * 0.25 * 0.75)
    assert narrowest >= 64
    wide = TrainTransform((64, 64), (0.25, 1.0), (1.0, 2.0), False, "bilinear")
    assert wide.min_side is not None
    assert math.sqrt(wide.min_side**2 * 0.25 / 2.0) >= 64  # the height of the widest crop


def test_a_ribbon_is_cut_before_it_is_enlarged() -> None:
    """Its cover at 240 px would have 14 million rows, 10 GB; the centre is what of an image within bounds it is."""
    transform = EvalTransform((240, 240), PreprocessConfig(resize="shortest"))
    rows = np.arange(60_000, dtype=np.uint32)
    ribbon = np.stack([rows % 251, rows % 241, rows % 239], axis=1).astype(np.uint8)[:, None]
    found = transform.pixels(Image.fromarray(ribbon))
    assert tuple(found.shape) == (3, 240, 240)
    middle = transform.pixels(Image.fromarray(np.ascontiguousarray(ribbon[29_000:31_000])))
    assert int((found.int() - middle.int()).abs().max()) <= 1
    assert torch.equal(transform.pixels(Image.fromarray(ribbon.transpose(1, 0, 2))), found.transpose(1, 2))


@pytest.mark.parametrize("size", [(300, 260), (73, 91), (64, 48), (20, 17), (2, 90), (90, 2), (1, 1)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_view_is_pillows_columns_then_rows(size: tuple[int, int], interpolation: str) -> None:
    """Within a rounding of each pass: with crop_scale 1 and a ratio of the image's own, the crop is the whole image."""
    image, (height, width) = photo(*size), (48, 64)
    ratio = size[0] / size[1] * height / width
    transform = TrainTransform((height, width), (1.0, 1.0), (ratio, ratio), False, interpolation)
    found = transform(image, Stream(0)).permute(1, 2, 0).numpy().astype(int)
    resample = getattr(Image.Resampling, interpolation.upper())
    expected = np.asarray(image.resize((width, size[1]), resample).resize((width, height), resample)).astype(int)
    assert np.abs(found - expected).max() <= 2
    assert (found != expected).mean() < 0.05


def smooth(width: int, height: int) -> Image.Image:
    """Detail at every size, as photographs have it."""
    layers = [np.asarray(photo(width // n, height // n).resize((width, height))).astype(float) - 128 for n in (8, 32, 128)]
    return Image.fromarray((128 + layers[0] / 8 + layers[1] / 4 + layers[2] / 2).clip(0, 255).astype(np.uint8))


def test_what_scaled_decoding_changes() -> None:
    """A view of a JPEG decoded at a quarter and one of the whole: a level or so apart, where the image's own spread is many."""
    data = encode(smooth(1024, 768), "JPEG", quality=90)
    fast, exact = (TrainTransform((96, 96), (0.9, 1.0), (0.75, 4 / 3), False, "bicubic", scaled) for scaled in (True, False))
    assert decode_image(data, fast.min_side).size == (256, 192)
    assert decode_image(data, exact.min_side).size == (1024, 768)
    views = [t(decode_image(data, t.min_side), Stream(3)).double() for t in (fast, exact)]
    assert views[1].std() > 20
    assert (views[0] - views[1]).abs().mean() < 2
    assert not torch.equal(*views)


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
