"""Prepares one image for a shard: its bytes as they are, or scaled down and encoded again where that was asked for.

An image is decoded only if its pixels must change: if its short side is longer than asked for, or if it has another format.
Large JPEGs are then decoded at a half, a quarter or an eighth of their size, as training does. The bytes of every
other image are copied. Their header is read, and where their end is missing they are decoded to see how much is lost.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

from flexiclip.data.images import ImageError, decode_image, open_image, require_few_scans, resize_rgb

FORMATS = ("jpg", "png", "webp")
"""The formats that images can be written in, by their extensions."""

_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}  # Pillow's name of a format, if it is not the extension
_WRITERS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
_TAIL = 1024  # bytes at the end of a file in which its end mark is looked for


@dataclass(frozen=True)
class ImageOptions:
    """What happens to the images. `side`: the longest short side in pixels; None keeps every size.

    `format`: one of FORMATS; None keeps the format. `quality`: of JPEG and WebP, 1 to 100, where an image is encoded again.
    """

    side: int | None = None
    format: str | None = None
    quality: int = 95


KEEP = ImageOptions()
"""The options with which every image is copied."""


def prepare_image(data: bytes, options: ImageOptions = KEEP) -> tuple[str, bytes]:
    """Return (extension, bytes) of an image file as it goes into a shard. Raises ImageError if training could not use it."""
    image = open_image(data)
    extension = _EXTENSIONS.get(str(image.format), str(image.format).lower())
    small = options.side is None or min(image.size) <= options.side
    if small and options.format in (None, extension):
        if not _has_end(data, extension):
            decode_image(data)
        elif image.info.get("progressive"):  # other JPEGs have one scan, or one per channel
            require_few_scans(data)
        return extension, data
    return _encoded(data, image.size, extension, options)


def _has_end(data: bytes, extension: str) -> bool:
    """Whether the file has the end mark of its format. False where the format has none that is cheap to find."""
    if extension == "jpg":
        return b"\xff\xd9" in data[-_TAIL:]
    if extension == "png":
        return b"IEND" in data[-_TAIL:]
    return extension == "webp" and int.from_bytes(data[4:8], "little") + 8 <= len(data)


def _encoded(data: bytes, size: tuple[int, int], extension: str, options: ImageOptions) -> tuple[str, bytes]:
    """Decode an image of (width, height), scale it down and encode it."""
    side = options.side
    image = decode_image(data, side)
    if side is not None and min(size) > side:
        long = max(1, round(max(size) * side / min(size)))
        wide = image.width >= image.height  # EXIF may have turned it
        image = _resized(image, (side, long) if wide else (long, side))
    kept = extension if extension in FORMATS else "png"
    return _encode(image, options.format or kept, options.quality)


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize RGB to (height, width) with the code of training, which takes a third of the time of Pillow's."""
    planes = resize_rgb(image, size, "bicubic").numpy()
    return Image.merge("RGB", [Image.fromarray(plane) for plane in planes])


def _encode(image: Image.Image, extension: str, quality: int) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    try:
        image.save(buffer, _WRITERS[extension], quality=quality)
    except (OSError, ValueError) as error:  # WebP and JPEG have a longest side
        raise ImageError(f"{image.width} x {image.height} cannot be written as {extension}: {error}") from None
    return extension, buffer.getvalue()
