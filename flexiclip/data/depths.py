"""Pictures of more or fewer than 8 bits: what Pillow's decoders leave as the file has it, put into the units of the pixels."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

_STEPS = {"L;2": 85, "L;4": 17}  # what Pillow multiplies the greys of such a PNG by, but not its transparent one
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF tags, and a value of the second
_MOST = 2**16 - 1
_BAND = 2**22  # pixels that are compared at once


def raw_mode(image: Image.Image) -> str:
    """How the file of an image that is not loaded yet stores its pixels, in Pillow's words; "" of one that is loaded."""
    tiles: Any = getattr(image, "tile", None)
    raw = tiles[0][3] if tiles else ""
    return str(raw[0] if isinstance(raw, tuple) and raw else raw or "")


def adapted(image: Image.Image, raw: str, data: bytes | None = None) -> Image.Image:
    """A loaded image whose transparency and greys are in the units of its pixels. raw: its raw_mode before it was loaded.

    data: the file, which tells the transparent colour of a PNG of 16 bits a channel from its neighbours; without it all colours
    with the same upper 8 bits are transparent.
    """
    colour = image.info.get("transparency")
    if raw in _STEPS and isinstance(colour, int):
        image.info["transparency"] = colour * _STEPS[raw]
    elif raw == "RGB;16B" and isinstance(colour, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in colour)
        return image if data is None else _transparent_at(image, colour, data)
    elif image.format == "TIFF" and image.mode.startswith("I;16"):
        return _tiff_greys(image)
    return image


def _transparent_at(image: Image.Image, colour: tuple[int, ...], data: bytes) -> Image.Image:
    """RGBA: the pixels of exactly this 16-bit colour are transparent."""
    low: Any = Image.open(io.BytesIO(data), formats=("PNG",))
    low.tile = [(*tile[:3], "RGB;16L") for tile in low.tile]  # the other byte of each number
    low.load()
    alpha = Image.new("L", image.size)
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        pixels = np.asarray(image.crop(box)).astype(np.uint16) << 8 | np.asarray(low.crop(box))
        opaque = (pixels != np.array(colour, np.uint16)).any(axis=2)
        alpha.paste(Image.fromarray(255 * opaque.astype(np.uint8)), box)
    image.putalpha(alpha)
    return image


def _tiff_greys(image: Any) -> Image.Image:
    """16-bit greys, black at 0: Pillow leaves 12 bits at 12, and white at 0 where the file has it so."""
    bits, inverted = image.tag_v2.get(_BITS, (16,))[0], image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    if bits == 16 and not inverted:
        return image  # type: ignore[no-any-return]
    greys = np.asarray(image).astype(np.uint32) * _MOST // (2**bits - 1)
    return Image.fromarray((_MOST - greys if inverted else greys).astype(np.uint16))


def grey_to_rgb(image: Image.Image) -> Image.Image:
    """Whole numbers of 0 to 65535 as RGB, 8 bits a channel, the transparent one white; Pillow's own conversion clips at 255.

    Raises ValueError for numbers beyond that.
    """
    grey = np.asarray(image).astype(np.int64)
    if grey.size and (grey.min() < 0 or grey.max() > _MOST):
        raise ValueError(f"greys of {grey.min()} to {grey.max()} have no agreed range")
    eight = ((grey + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        eight[grey == transparent] = 255
    return Image.fromarray(eight).convert("RGB")
