"""What happens to an image on its way into a shard: copied untouched, or scaled down and encoded again."""

from __future__ import annotations

import io

import numpy as np
import pytest
from kit.shards import encode, jpeg
from PIL import Image

from flexiclip.data.images import ImageError, decode_image
from flexiclip.data.pack_images import ImageOptions, prepare_image

RAMP = Image.fromarray(np.linspace(0, 255, 640 * 480 * 3).reshape(480, 640, 3).astype(np.uint8))


@pytest.mark.parametrize(
    ("kind", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif"), ("BMP", "bmp"), ("TIFF", "tif")]
)
def test_without_options_the_bytes_are_copied_and_the_content_names_the_format(kind: str, extension: str) -> None:
    data = encode(RAMP, kind)
    assert prepare_image(data) == (extension, data)


def test_an_image_that_is_small_enough_and_of_the_format_is_copied() -> None:
    data = jpeg(1, (24, 20))
    assert prepare_image(data, ImageOptions(20)) == ("jpg", data)
    assert prepare_image(data, ImageOptions(20, "jpg", 50)) == ("jpg", data)
    assert prepare_image(data, ImageOptions(19))[1] != data


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (641, 479), (100, 1000)])
@pytest.mark.parametrize("side", [60, 100, 224])
def test_the_short_side_gets_the_size_and_the_shape_stays(size: tuple[int, int], side: int) -> None:
    extension, data = prepare_image(encode(RAMP.resize(size), "JPEG", quality=95), ImageOptions(side))
    width, height = Image.open(io.BytesIO(data)).size
    if min(size) <= side:
        assert (width, height) == size
        return
    assert extension == "jpg"
    assert min(width, height) == side
    assert max(width, height) == round(max(size) * side / min(size))
    assert (width > height) == (size[0] > size[1])


@pytest.mark.parametrize("side", [100, 224, 300])  # decoded at a quarter, at a half, and whole
def test_the_pixels_are_those_of_pillow(side: int) -> None:
    data = encode(RAMP, "JPEG", quality=95)
    _, ours = prepare_image(data, ImageOptions(side, "png"))
    theirs = Image.open(io.BytesIO(data)).resize((round(640 * side / 480), side), Image.Resampling.BICUBIC)
    apart = np.abs(np.asarray(decode_image(ours), np.float64) - np.asarray(theirs, np.float64))
    assert apart.mean() < 1.5


def test_an_image_that_exif_turns_is_upright_when_it_is_encoded_again() -> None:
    """EXIF 6: the top row of the file is the right side of the picture."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = Image.new("RGB", (40, 20), "white")
    pixels.paste((255, 0, 0), (0, 0, 40, 10))
    _, data = prepare_image(encode(pixels, "JPEG", exif=exif, quality=95), ImageOptions(10, "png"))
    image = Image.open(io.BytesIO(data)).convert("RGB")
    assert image.size == (10, 20)
    assert image.getpixel((9, 10))[1] < 60 < 200 < image.getpixel((0, 10))[1]  # type: ignore[index]


@pytest.mark.parametrize(("wanted", "magic"), [("jpg", b"\xff\xd8"), ("png", b"\x89PNG"), ("webp", b"RIFF")])
def test_the_format_is_changed(wanted: str, magic: bytes) -> None:
    source = encode(RAMP.resize((50, 40)), "BMP")
    extension, data = prepare_image(source, ImageOptions(format=wanted))
    assert (extension, data[: len(magic)]) == (wanted, magic)
    assert Image.open(io.BytesIO(data)).size == (50, 40)


def test_a_scaled_image_of_another_format_becomes_png_and_loses_its_transparency() -> None:
    palette = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    extension, data = prepare_image(encode(palette, "GIF"), ImageOptions(20))
    assert extension == "png"
    assert np.asarray(Image.open(io.BytesIO(data))).min() == 255, "transparent parts are white, as in training"


def test_quality_decides_about_the_size() -> None:
    data = encode(RAMP.rotate(30), "JPEG", quality=98)
    sizes = [len(prepare_image(data, ImageOptions(200, quality=quality))[1]) for quality in (30, 95)]
    assert sizes[0] < 0.6 * sizes[1]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_truncated_image_is_refused_though_it_would_only_be_copied(kind: str) -> None:
    data = encode(Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)), kind)
    with pytest.raises(ImageError):
        prepare_image(data[: len(data) * 2 // 3])


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(ImageError, match="web page"):
        prepare_image(b"<html>not found</html>")


def test_bytes_after_the_end_are_copied_too() -> None:
    data = jpeg(3) + bytes(5000)
    assert prepare_image(data) == ("jpg", data)


def test_a_side_that_webp_cannot_have_is_a_bad_image() -> None:
    with pytest.raises(ImageError, match="cannot be written as webp"):
        prepare_image(encode(Image.new("RGB", (17000, 2)), "PNG"), ImageOptions(format="webp"))


def test_a_jpeg_that_paints_for_ever_is_refused_though_it_would_only_be_copied() -> None:
    data = encode(Image.new("RGB", (64, 64)), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(ImageError, match="more than 100 scans"):
        prepare_image(data[:-2] + scan * 200 + b"\xff\xd9")
    assert prepare_image(data) == ("jpg", data)
