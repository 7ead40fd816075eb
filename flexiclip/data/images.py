"""Decodes images to RGB, and turns them into pixels: random crops for training, resize and center crop for evaluation.

Decoding is bounded in time and memory, because shards may come from anywhere: a progressive JPEG of one megabyte may
hold a hundred thousand scans, which would take hours to decode. Images with more or fewer than 8 bits per channel are
brought to 8 bits.

Pixels leave the workers as uint8 and are normalized on the device (`normalize`), so only a quarter of the bytes is
copied.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from flexiclip.files import text_instead
from flexiclip.libraries import short_reason

if TYPE_CHECKING:
    import torch

    from flexiclip.config import PreprocessConfig
    from flexiclip.draws import Stream


_START_OF_SCAN, _END = 0xDA, 0xD9
_BARE = (0x01, *range(0xD0, 0xD9))  # markers without a length: restarts, and the start of the image
_SCAN = re.compile(rb"\xff\xda")
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # inside coded data, 0xff is followed by zero


def more_scans_than(data: bytes, limit: int) -> bool:
    """Whether the JPEG file `data` has more than `limit` scans, without those of thumbnails and of anything after its end."""
    if next(itertools.islice(_SCAN.finditer(data), limit, None), None) is None:  # for nearly every file; the walk takes longer
        return False
    position, scans = 0, 0
    while scans <= limit:
        found = _MARKER.search(data, position)
        if found is None or found[1][0] == _END:
            return False
        position = found.end()
        if found[1][0] in _BARE:
            continue
        scans += found[1][0] == _START_OF_SCAN
        position += max(2, int.from_bytes(data[position : position + 2], "big"))
    return True


_STEPS = {"L;2": 85, "L;4": 17}  # Pillow multiplies the greys of such a PNG by this, but not its transparent grey
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # two TIFF tags, and the value of the second that means white at 0
_MOST = 2**16 - 1
_BAND = 2**22  # pixels that are processed at once


def raw_mode(image: Image.Image) -> str:
    """Return Pillow's name for how the file stores its pixels ("" if the image is already loaded)."""
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    raw = tiles[0][3] if tiles else ""
    return str(raw[0] if isinstance(raw, tuple) and raw else raw or "")


def adapted(image: Image.Image, raw: str, data: bytes | None = None) -> Image.Image:
    """Bring the transparent color and the greys of a loaded image into the units of its pixels.

    Pillow's decoders leave both as they are in the file. `raw`: the image's `raw_mode` before it was loaded. `data`:
    the bytes of the file, which are needed to tell the transparent color of a PNG with 16 bits per channel from its
    neighbors; without them, all colors with the same upper 8 bits are transparent.
    """
    colour = image.info.get("transparency")
    if raw in _STEPS and isinstance(colour, int):
        image.info["transparency"] = colour * _STEPS[raw]
    elif raw == "RGB;16B" and isinstance(colour, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in colour)
        return image if data is None else _transparent_at(image, colour, data)
    elif isinstance(image, TiffImageFile) and image.mode.startswith("I;16"):
        return _tiff_greys(image)
    return image


def _transparent_at(image: Image.Image, colour: tuple[int, ...], data: bytes) -> Image.Image:
    """Return the image as RGBA, in which exactly the pixels of this 16-bit color are transparent."""
    low: Any = Image.open(io.BytesIO(data), formats=("PNG",))
    low.tile = [(*tile[:3], "RGB;16L") for tile in low.tile]  # the low byte of each number
    low.load()
    alpha = Image.new("L", image.size)
    for box in _bands(image):
        pixels = np.asarray(image.crop(box)).astype(np.uint16) << 8 | np.asarray(low.crop(box))
        opaque = (pixels != np.array(colour, np.uint16)).any(axis=2)
        alpha.paste(Image.fromarray(255 * opaque.astype(np.uint8)), box)
    image.putalpha(alpha)
    return image


def _bands(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Yield boxes (left, top, right, bottom) that hold some rows of the image each, so that work on them takes little memory."""
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _tiff_greys(image: TiffImageFile) -> Image.Image:
    """Return 16-bit greys with black at 0. Pillow leaves 12-bit greys unscaled, and white at 0 if the file stores it so."""
    bits, inverted = image.tag_v2.get(_BITS, (16,))[0], image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    if bits == 16 and not inverted:
        return image
    greys = np.asarray(image).astype(np.uint32) * _MOST // (2**bits - 1)
    return Image.fromarray((_MOST - greys if inverted else greys).astype(np.uint16))


def grey_to_rgb(image: Image.Image) -> Image.Image:
    """Convert integers from 0 to 65535 to RGB with 8 bits per channel; the transparent value becomes white.

    Pillow's own conversion clips at 255. Raises ValueError for numbers outside the range.
    """
    grey = np.asarray(image).astype(np.int64)
    if grey.size and (grey.min() < 0 or grey.max() > _MOST):
        raise ValueError(f"greys of {grey.min()} to {grey.max()} have no agreed range")
    eight = ((grey + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        eight[grey == transparent] = 255
    return Image.fromarray(eight).convert("RGB")


MAX_PIXELS = 2**26  # 8192 x 8192, 268 MB in Pillow. A larger image is an error, so that the worker does not run out of memory.
_SEVERAL_TIMES = ("WEBP", "AVIF")  # their decoders hold several copies of the image, so half as many pixels are allowed
_MOST_SCANS = 100  # of a JPEG; a progressive JPEG has about ten

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")  # never EPS or similar formats, which start programs
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_CROP_TRIES = 10  # as in torchvision's RandomResizedCrop


class ImageError(ValueError):
    """The bytes are not an image that can be decoded. The text gives the reason."""


def decode_image(data: bytes, min_side: int | None = None) -> Image.Image:
    """Decode an image file to upright RGB with 8 bits per channel.

    EXIF orientation is applied, transparency is put on white, and the first frame of an animation is taken. Color
    profiles are ignored.

    `min_side`: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as its short side keeps this many pixels.
    This is much faster, because it uses only the low frequencies of each DCT block; evaluation never does it.

    Raises ImageError for damaged or truncated data, unknown formats and images of more than MAX_PIXELS pixels (half of
    that for WebP and AVIF).
    """
    try:
        image = open_image(data)
        if image.format in ("JPEG", "MPO"):
            require_few_scans(data)
            if min_side is not None:
                image.draft(None, (min_side, min_side))
        raw = raw_mode(image)
        image.load()
        image = adapted(image, raw, data)
        with contextlib.suppress(Exception):  # the pixels may be fine although the EXIF data is damaged
            ImageOps.exif_transpose(image, in_place=True)  # turns the pixels before it rewrites the EXIF data
        return to_rgb(image)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
        raise ImageError(_why_not(data, error)) from None


def open_image(data: bytes) -> Image.Image:
    """Open an image file without decoding its pixels. Raises ImageError for what `decode_image` refuses by the header alone."""
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=_formats())
    except Exception as error:
        raise ImageError(_why_not(data, error)) from None
    most = MAX_PIXELS // 2 if image.format in _SEVERAL_TIMES else MAX_PIXELS
    if image.width * image.height > most:
        raise ImageError(f"{image.width} x {image.height} exceeds {most} pixels")
    return image


def require_few_scans(data: bytes) -> None:
    """Raise ImageError for a JPEG file of so many scans that decoding it would take too long."""
    if more_scans_than(data, _MOST_SCANS):
        raise ImageError(f"a JPEG of more than {_MOST_SCANS} scans, which would take too long to decode")


def _why_not(data: bytes, error: Exception) -> str:
    """Return the reason in Pillow's words, or what the bytes are if they are not an image.

    Pillow's own text for unknown formats is not used, because it contains the memory address of a Python object.
    """
    if not isinstance(error, UnidentifiedImageError):
        return f"{type(error).__name__}: {short_reason(error)}"
    found = text_instead(data)
    what = "" if found is None else f", {found.partition(';')[0]}"
    return f"{type(error).__name__}: cannot identify image file{what}"


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return those of the accepted formats that this build of Pillow can open."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow image to RGB: transparency is put on white, and 16-bit greys are scaled to 8 bits.

    Raises ImageError for float pixels, and for greys that are negative or have more than 16 bits.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    raw = raw_mode(image)
    image.load()
    image = adapted(image, raw)
    if image.mode.startswith("I"):
        try:
            return _in_bands(image, grey_to_rgb)
        except ValueError as error:
            raise ImageError(str(error)) from None
    if image.has_transparency_data:
        return _in_bands(image, _on_white)
    if image.mode == "F":
        raise ImageError("float pixels have no agreed range")
    return image.convert("RGB")


def _in_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Apply `convert`, a function to RGB that treats each pixel alone, to some rows at a time, which limits memory."""
    converted = Image.new("RGB", image.size)
    for box in _bands(image):
        converted.paste(convert(image.crop(box)), box)
    return converted


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


@dataclass(frozen=True)
class TrainTransform:
    """Random crop, resize and optional flip: maps an RGB image and a random stream to uint8 [3, H, W].

    Equal streams give equal results. `image_size`: (H, W) in pixels. `crop_scale`: the range of the crop's share of the
    image's area. `crop_ratio`: the range of the crop's width / height relative to the output's, drawn log-uniformly.
    `scaled_decoding`: see `min_side`.
    """

    image_size: tuple[int, int]
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    flip: bool
    interpolation: str
    scaled_decoding: bool = True

    def __call__(self, image: Image.Image, stream: Stream) -> torch.Tensor:
        """Return one random view, uint8 [3, H, W]."""
        crop = image.crop(self.crop_box(image.width, image.height, stream))
        pixels = resize_rgb(crop, self.image_size, self.interpolation)
        return pixels.flip(2) if self.flip and stream.random() < 0.5 else pixels

    @functools.cached_property
    def min_side(self) -> int | None:
        """The short side in pixels below which the smallest crop would be enlarged; None without scaled_decoding.

        A JPEG may be decoded as small as this (see `decode_image`).
        """
        if not self.scaled_decoding:
            return None
        flattest = min(1, self.crop_ratio[0], 1 / self.crop_ratio[1])
        return math.ceil(max(self.image_size) / math.sqrt(self.crop_scale[0] * flattest))

    def crop_box(self, width: int, height: int, stream: Stream) -> tuple[int, int, int, int]:
        """Return (left, top, right, bottom) of the crop in pixels.

        This is the center if none of the crops drawn fits into the image.
        """
        shape = self.image_size[1] / self.image_size[0]
        low, high = (math.log(ratio) for ratio in self.crop_ratio)
        for _ in range(_CROP_TRIES):
            area = width * height * _between(*self.crop_scale, stream)
            ratio = shape * math.exp(_between(low, high, stream))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(stream.random() * (width - w + 1)), int(stream.random() * (height - h + 1))
                return left, top, left + w, top + h
        ratio = min(max(width / height, shape * self.crop_ratio[0]), shape * self.crop_ratio[1])
        w, h = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h


def resize_rgb(image: Image.Image, size: tuple[int, int], interpolation: str) -> torch.Tensor:
    """Resize RGB to uint8 [3, *size] with antialiasing, in a quarter of Pillow's time.

    Columns are resized first, then rows; each pass agrees with Pillow's within one rounding.
    """
    import torch

    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # channels last in memory, for which torch has vector code
    return torch.nn.functional.interpolate(pixels[None], size, mode=interpolation, antialias=True)[0]


def _between(low: float, high: float, stream: Stream) -> float:
    return low + (high - low) * stream.random()


@dataclass(frozen=True)
class EvalTransform:
    """The transform of evaluation and of a model folder: maps any Pillow image to float32 [3, H, W], normalized.

    `image_size`: (H, W) in pixels. For squares, `shortest` equals torchvision's Resize and CenterCrop to the bit.
    """

    image_size: tuple[int, int]
    preprocess: PreprocessConfig

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Return (pixels / 255 - mean) / std, float32 [3, H, W]."""
        return normalize(self.pixels(image), self.preprocess.mean, self.preprocess.std)

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """Return the pixels before normalization, uint8 [3, H, W]."""
        import torch

        image = to_rgb(image)
        height, width = self.image_size
        resample = _RESAMPLING[self.preprocess.interpolation]
        if self.preprocess.resize == "squash":
            image = image.resize((width, height), resample)
        else:
            if math.prod(_cover(image.size, self.image_size)) > MAX_PIXELS:  # a ribbon: cut off its far ends before resizing
                rows, columns = -(-2 * height * image.width // width), -(-2 * width * image.height // height)
                image = _centre_crop(image, (min(image.height, rows), min(image.width, columns)))
            image = _centre_crop(image.resize(_cover(image.size, self.image_size), resample), self.image_size)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _cover(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Return (width, height) of the smallest image of the same shape that covers `target` (height, width).

    The rounding is torchvision's.
    """
    (width, height), (h, w) = size, target
    if h * width >= w * height:  # the height decides
        return max(w, int(h * width / height)), h
    return w, max(h, int(w * height / width))


def _centre_crop(image: Image.Image, target: tuple[int, int]) -> Image.Image:
    height, width = target
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def normalize(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Return (images - mean) / std per channel, float32 [..., 3, H, W].

    uint8 images are divided by 255 first; float images are expected in 0..1.
    """
    import torch

    scaled = images.float().div(255) if images.dtype == torch.uint8 else images.float()
    shift = torch.tensor(mean, dtype=torch.float32, device=images.device).view(-1, 1, 1)
    scale = torch.tensor(std, dtype=torch.float32, device=images.device).view(-1, 1, 1)
    return (scaled - shift) / scale
