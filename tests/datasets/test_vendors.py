"""Noto's and Fluent's builders: on packages made here, and once on the published ones."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flexiclip.__main__ import main
from flexiclip.data.remote import expand_shards
from flexiclip.data.samples import Sample, open_samples
from flexiclip.datasets.emoji_names import known_emoji
from flexiclip.datasets.vendors import FLUENT, NOTO, build_openmoji, build_vendor, read_pictures, with_openmoji_concepts
from flexiclip.errors import UserError

TRIAL: dict[str, Any] = {"pixels": 24, "heldout": 40, "limit": 120}


def samples(folder: Path, name: str) -> list[Sample]:
    store = open_samples(expand_shards(str(folder / f"{name}-*.tar")), ("png",), ("txt",))
    return [store[number] for number in range(len(store))]


def meta(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    """hexcode -> the json member."""
    shards = expand_shards(str(folder / f"{name}-*.tar"))
    store = open_samples(shards, ("png",), ("txt", "json:captions"))
    return {store[n].meta["hexcode"]: store[n].meta for n in range(len(store))}


def write_iconify(folder: Path, name: str, codes: dict[str, str]) -> Path:
    """An icon set: code points -> icon; each icon is a bar whose length and shade are its own."""
    folder.mkdir()
    icons = {
        icon: {"body": f'<path fill="#{i * 97:06x}" d="M0 0H{1 + i % 15}V9H0z"/>'}
        for i, icon in enumerate(sorted(set(codes.values())))
    }
    (folder / "package.json").write_text(json.dumps({"name": name, "version": "0.1.0"}))
    (folder / "icons.json").write_text(json.dumps({"width": 16, "height": 16, "icons": icons}))
    (folder / "chars.json").write_text(json.dumps(codes))
    return folder


@pytest.fixture(scope="module")
def openmoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("openmoji") / "set"
    build_openmoji(folder, **TRIAL)
    return folder


def test_a_concept_that_openmoji_holds_out_is_held_out(openmoji: Path, tmp_path: Path) -> None:
    held, trained = meta(openmoji, "heldout"), meta(openmoji, "train")
    codes = {code.lower(): f"icon-{code}" for code in (*held, *trained)}
    twin_held, twin_trained = sorted(held)[0], next(code for code, each in trained.items() if "tone" not in each["name"])
    codes[twin_held.lower()] = codes[twin_trained.lower()]  # one picture on both sides
    codes |= {"e0c0": "icon-none", "1f9ff-1f9ff": "icon-none"}  # no emoji of Unicode
    package = write_iconify(tmp_path / "noto", NOTO.package.name, codes)
    build, fresh = build_vendor(tmp_path / "set", NOTO, package, **TRIAL)
    assert fresh
    got_held, got_train, got_seen = (meta(tmp_path / "set", name) for name in ("heldout", "train", "seen"))
    assert set(got_held) == set(held) - {twin_held}
    assert set(got_train) == set(trained) - {twin_trained}
    for mine, theirs in ((got_held, held), (got_train, trained)):
        assert {code: each["concept"] for code, each in mine.items()} == {code: theirs[code]["concept"] for code in mine}
    classes = (tmp_path / "set" / "classnames.txt").read_text().splitlines()
    assert {each["concept"] for each in got_seen.values()} == {
        each["concept"] for each in got_train.values() if each["category"] in classes
    }
    assert len({each["concept"] for each in got_seen.values()}) == len(got_seen) < len(got_train)
    assert (build.heldout, build.train) == (len(got_held), len(got_train))
    assert build.packages[NOTO.package.name] == "0.1.0"
    assert {(each["license"], each["source"][:10]) for each in got_train.values()} == {("Apache-2.0", "Noto Emoji")}
    assert "Apache License" in (tmp_path / "set" / "LICENSE.txt").read_text()
    assert build_vendor(tmp_path / "set", NOTO, package, **TRIAL) == (build, False)
    with pytest.raises(UserError, match="does not hold a build of Fluent flat"):
        build_vendor(tmp_path / "set", FLUENT["flat"], package, **TRIAL)


def test_a_drawing_that_joins_both_sides_is_on_neither() -> None:
    emoji = {each.hexcode: each for each in known_emoji(["1F9D1-200D-1F680", "1F468-200D-1F680", "1F32D", "1F603", "1F604"])}
    astronaut, man, dog, smile, _ = (emoji[c] for c in ("1F9D1-200D-1F680", "1F468-200D-1F680", "1F32D", "1F603", "1F604"))
    theirs = [astronaut, dog]
    assert [e.hexcode for e in with_openmoji_concepts(list(emoji.values()), theirs, {"hot dog"})] == sorted(
        [astronaut.hexcode, man.hexcode, dog.hexcode]
    )
    assert smile.concept not in {e.concept for e in with_openmoji_concepts(list(emoji.values()), theirs, set())}
    split_in_two = [astronaut, type(man)(**{**vars(man), "hexcode": "1F32D", "concept": astronaut.concept})]
    assert with_openmoji_concepts([dog], [*split_in_two, dog], {"hot dog"}) == []


def test_pictures_are_laid_on_white(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    picture = np.zeros((64, 64, 4), np.uint8)
    picture[16:48, 16:48] = (200, 10, 30, 255)
    Image.fromarray(picture).save(tmp_path / "assets" / "0023-fe0f-20e3.webp", lossless=True)
    (code, draw), *rest = read_pictures(tmp_path).items()
    assert (code, rest) == ("0023-20E3", [])
    image = Image.open(io.BytesIO(draw(16)))
    assert (image.mode, image.size) == ("RGB", (16, 16))
    assert (image.getpixel((0, 0)), image.getpixel((8, 8))) == ((255, 255, 255), (200, 10, 30))


@pytest.mark.parametrize(
    ("about", "said"),
    [
        (None, "is not an npm package"),
        ('{"name": "left-pad", "version": "1.0.0"}', "holds the npm package 'left-pad': give the folder of @iconify"),
    ],
)
def test_a_folder_of_something_else(about: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p").mkdir()
    if about:
        (tmp_path / "p" / "package.json").write_text(about)
    assert main(["data", "noto", "--output", str(tmp_path / "o"), "--pixels", "8", "--package", str(tmp_path / "p")]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
@pytest.mark.parametrize("vendor", [NOTO, *FLUENT.values()], ids=lambda vendor: vendor.title)
def test_build_vendor_of_the_published_packages(vendor: Any, openmoji: Path, tmp_path: Path) -> None:
    build, _ = build_vendor(tmp_path / "set", vendor, **TRIAL)
    held = {each["concept"] for each in meta(openmoji, "heldout").values()}
    mine = {name: {each["concept"] for each in meta(tmp_path / "set", name).values()} for name in ("heldout", "train", "seen")}
    assert mine["heldout"] <= held
    assert not mine["train"] & held
    assert len(mine["heldout"]) == build.heldout > 0.75 * len(held)
    assert len(mine["seen"]) > 0.75 * len({each["concept"] for each in meta(openmoji, "train").values()})
    pictures = [{s.image.tobytes() for s in samples(tmp_path / "set", name)} for name in ("heldout", "train")]
    assert not pictures[0] & pictures[1]
    corners = np.stack([np.asarray(s.image)[0, 0] for s in samples(tmp_path / "set", "train")])
    assert (corners > 250).all(axis=1).mean() > 0.6
