"""Command lines for the tests that are put together from a common part and a part of their own."""

from __future__ import annotations

import re
from collections.abc import Sequence

from flexiclip.config import Config, load

_OVERRIDE = re.compile(r"[a-z_]+(\.[a-z_]+)*(?==)")


def last_of_each(words: Sequence[str]) -> list[str]:
    """The words without each `key=value` whose key comes again later: the command line itself takes a key once."""
    last = {found[0]: number for number, word in enumerate(words) if (found := _OVERRIDE.match(word))}
    return [word for number, word in enumerate(words) if not (found := _OVERRIDE.match(word)) or last[found[0]] == number]


def load_last(words: Sequence[str]) -> Config:
    """The config of a recipe and its overrides; of those of one key the last is taken."""
    recipe, *overrides = last_of_each(words)
    return load(recipe, overrides)
