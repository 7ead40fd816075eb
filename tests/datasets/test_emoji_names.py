"""Which emoji are one concept, and what is known of each."""

from __future__ import annotations

import pytest

from flexiclip.datasets.emoji_names import concept_words, known_emoji


@pytest.mark.parametrize(
    ("name", "concept"),
    [
        ("woman astronaut medium-dark skin tone", "astronaut"),
        ("man in manual wheelchair facing right light skin tone", "in manual wheelchair"),
        ("people holding hands light skin tone medium skin tone", "holding hands"),
        ("family man woman girl boy", "family"),
        ("thumbs down", "thumbs"),
        ("left arrow", "arrow"),
        ("girl", "child"),
        ("person", "person"),
        ("light skin tone", "light skin tone"),
        ("princess", "prince"),
        ("hot dog", "hot dog"),
    ],
)
def test_concept_words_of_names(name: str, concept: str) -> None:
    assert concept_words(name)[0] == concept


def test_metadata_of_known_emoji() -> None:
    codes = ["1F32D", "1F468-1F3FF-200D-1F680", "1F9D1-200D-1F680", "2764-FE0F", "1F1E8-1F1F6", "E0C0"]
    found = {emoji.hexcode: emoji for emoji in known_emoji(codes)}
    assert set(found) == {"1F32D", "1F468-1F3FF-200D-1F680", "1F9D1-200D-1F680", "2764", "1F1E8-1F1F6"}  # E0C0 is OpenMoji's own
    assert (found["1F32D"].name, found["1F32D"].category, found["1F32D"].subcategory) == (
        "hot dog",
        "Food & Drink",
        "food-prepared",
    )
    assert found["1F468-1F3FF-200D-1F680"].concept == found["1F9D1-200D-1F680"].concept == "astronaut"
    assert found["1F468-1F3FF-200D-1F680"].name == "man astronaut dark skin tone"
    assert (found["1F1E8-1F1F6"].name, found["1F1E8-1F1F6"].category) == ("flag: Sark", "Flags")
