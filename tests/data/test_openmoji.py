"""The real builder on real drawings, at 32 pixels and a quarter of its size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flexiclip.data.remote import expand_shards
from flexiclip.data.samples import Sample, open_samples
from flexiclip.datasets.emoji_names import concept_words, known_emoji
from flexiclip.datasets.emoji_set import EmojiBuild
from flexiclip.datasets.vendors import build_openmoji
from flexiclip.errors import UserError

LIMIT, HELD_OUT = 450, 100  # concepts


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EmojiBuild]:
    folder = tmp_path_factory.mktemp("openmoji") / "set"
    build, fresh = build_openmoji(folder, pixels=32, heldout=HELD_OUT, limit=LIMIT)
    assert fresh
    return folder, build


def samples(folder: Path, name: str) -> list[Sample]:
    store = open_samples(expand_shards(str(folder / f"{name}-*.tar")), ("png",), ("txt", "json:captions"))
    return [store[number] for number in range(len(store))]


def test_no_concept_and_no_picture_is_on_both_sides(built: tuple[Path, EmojiBuild]) -> None:
    train, held_out = (samples(built[0], name) for name in ("train", "heldout"))
    assert not {s.meta["concept"] for s in train} & {s.meta["concept"] for s in held_out}
    assert not {s.image.tobytes() for s in train} & {s.image.tobytes() for s in held_out}
    # The concept rule once more, by words: no name of a training drawing reduces to the name of a held-out one.
    assert not {concept_words(s.meta["name"])[0] for s in train} & {concept_words(s.meta["name"])[0] for s in held_out}


def test_the_held_out_set_is_fit_for_scoring(built: tuple[Path, EmojiBuild]) -> None:
    folder, build = built
    held_out = samples(folder, "heldout")
    assert abs(len(held_out) - HELD_OUT) <= 5
    assert len({s.captions[0] for s in held_out}) == len({s.image.tobytes() for s in held_out}) == len(held_out)
    assert not any("skin tone" in caption for s in held_out for caption in s.captions)
    classes = (folder / "classnames.txt").read_text(encoding="utf-8").split("\n")[:-1]
    store = open_samples(expand_shards(str(folder / "heldout-0000.tar")), ("png",), ())
    for number, sample in enumerate(held_out):
        label = store.member(*store.locate(number), "cls")
        assert label is not None
        assert classes[int(label)] == sample.meta["category"]
    assert len(classes) == 9
    assert "Component" not in classes
    assert build.heldout_categories == {c: sum(s.meta["category"] == c for s in held_out) for c in classes}
    assert max(build.heldout_categories.values()) < 0.4 * len(held_out)


def test_training_shards_hold_all_the_rest(built: tuple[Path, EmojiBuild]) -> None:
    folder, build = built
    train = samples(folder, "train")
    assert len(train) == build.train > build.train_concepts == len({s.meta["concept"] for s in train})
    assert LIMIT - HELD_OUT - 10 <= build.train_concepts <= LIMIT - HELD_OUT + 5  # equal drawings unite a few
    assert any("skin tone" in s.captions[0] for s in train)
    for sample in train:
        assert sample.image.size == (32, 32)
        assert sample.captions[0] == sample.meta["name"]
        assert sample.meta["license"] == "CC-BY-SA-4.0"
    corners = np.stack([np.asarray(s.image)[0, 0] for s in train])
    assert (corners == 255).all(axis=1).mean() > 0.9  # transparency became white
    for name in ("LICENSE.txt", "DATASET.md"):
        assert "ShareAlike 4.0" in (folder / name).read_text(encoding="utf-8") or "CC-BY-SA-4.0" in (folder / name).read_text()


def test_the_same_packages_give_the_same_bytes(built: tuple[Path, EmojiBuild], tmp_path: Path) -> None:
    build, fresh = build_openmoji(tmp_path / "again", pixels=32, heldout=HELD_OUT, limit=LIMIT)
    assert fresh
    assert build == built[1]
    for path in sorted((tmp_path / "again").iterdir()):
        assert path.read_bytes() == (built[0] / path.name).read_bytes()


def test_an_existing_folder(built: tuple[Path, EmojiBuild], tmp_path: Path) -> None:
    assert build_openmoji(built[0], pixels=32, heldout=HELD_OUT, limit=LIMIT) == (built[1], False)
    with pytest.raises(UserError, match="other settings"):
        build_openmoji(built[0], pixels=64, heldout=HELD_OUT, limit=LIMIT)
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="holds no OpenMoji build"):
        build_openmoji(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


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
def test_concepts(name: str, concept: str) -> None:
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
