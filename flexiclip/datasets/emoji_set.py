"""Writes the drawings of emoji of any vendor as a folder of image-text shards, with whole concepts held out.

    DIR/train-0000.tar ...     every drawing of the training concepts, including skin tones: png, txt, json
    DIR/heldout-0000.tar       one neutral drawing of each held-out concept: png, txt, json, cls
    DIR/classnames.txt         the categories of the held-out drawings; `cls` is their number from 0
    DIR/dataset.json           counts and settings
    DIR/LICENSE.txt            the license
    DIR/DATASET.md             a description with license and source

`txt` is the Unicode name. `json` holds captions (name, aliases, name with subcategory), name, category, subcategory,
emoji, hexcode, concept, license and source. Images are RGB on white. The same packages give the same bytes.

Packages of npm's registry are downloaded by npm itself: `npm pack` gets one tarball from the registry that npm is set
to (NPM_CONFIG_REGISTRY, .npmrc), and runs nothing of it. Its hash is compared here with the hash in the code, so a
registry or mirror can only deliver the bytes that were reviewed. Only pictures and JSON files are unpacked.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import shutil
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath

from PIL import Image

from flexiclip.datasets.emoji_names import Emoji, require
from flexiclip.errors import UserError
from flexiclip.files import new_folder

_TAKEN = {".json", ".png", ".svg", ".webp"}


@dataclass(frozen=True)
class NpmPackage:
    """A version of an npm package. `integrity` is the hash of its tarball as npm publishes it: `sha512-` and base64."""

    name: str
    version: str
    integrity: str

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


def fetch(package: NpmPackage, folder: Path) -> Path:
    """Download the package into the empty folder `folder`, and return the folder with its pictures and JSON files.

    Raises UserError if npm is missing or cannot fetch the package, or if the hash is wrong.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"npm is not installed; install it, or unpack {package} yourself and give --package DIR")
    command = [npm, "pack", str(package), "--ignore-scripts", "--pack-destination", str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603 - fixed words
    tarballs = list(folder.glob("*.tgz"))
    if done.returncode or len(tarballs) != 1:
        said = [line for line in done.stderr.splitlines() if "npm error" in line or "npm ERR!" in line]
        raise UserError(f"npm could not fetch {package}: {said[0].strip() if said else f'exit code {done.returncode}'}")
    digest = "sha512-" + base64.b64encode(hashlib.sha512(tarballs[0].read_bytes()).digest()).decode()
    if digest != package.integrity:
        raise UserError(f"{package} from npm's registry is not the package that was published: its hash is {digest}")
    return unpack(tarballs[0], folder / "package")


def unpack(tarball: Path, folder: Path) -> Path:
    """Write the pictures and JSON files of a package into `folder`. Links and paths that lead out of it are skipped."""
    with tarfile.open(tarball, "r:gz") as archive:
        for member in archive:
            inside = PurePosixPath(*PurePosixPath(member.name).parts[1:])  # the first part is the package's own folder
            content = archive.extractfile(member) if member.isreg() and inside.suffix in _TAKEN else None
            if content is None or inside.is_absolute() or ".." in inside.parts:
                continue
            place = folder / inside
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content.read())
    return folder


def installed_version(folder: Path, package: NpmPackage) -> str:
    """Return the version of the package in a folder. Raises UserError if the folder does not hold that package."""
    try:
        about = json.loads((folder / "package.json").read_text(encoding="utf-8"))
        name, version = about["name"], str(about["version"])
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(
            f"{folder} is not an npm package: it has no package.json with a name and version; give {package} unpacked"
        ) from None
    if name != package.name:
        raise UserError(f"{folder} holds the npm package {name!r}: give the folder of {package}")
    return version


_FORMAT = 1  # the version of the folder's format; a build of another version does not count as complete
_SHARD_SAMPLES = 500
_log = logging.getLogger(__name__)

Drawn = tuple[Emoji, bytes]
"""An emoji and the bytes of its PNG."""
Settings = tuple[int, int, int, int | None]
"""The first four fields of EmojiBuild."""


@dataclass(frozen=True)
class EmojiSet:
    """Who made the drawings, and under which license. A build is recognized by `package`, which holds the drawings."""

    title: str
    package: str
    license: str
    source: str  # written into each sample
    attribution: str  # the first paragraph of DATASET.md


@dataclass(frozen=True)
class EmojiBuild:
    """The content of a folder: images and concepts of both splits, settings and package versions.

    `heldout_categories` counts the held-out images per category.
    """

    format: int
    pixels: int
    wanted: int  # the number of concepts that were asked to be held out
    limit: int | None
    train: int
    train_shards: int
    train_concepts: int
    heldout: int
    heldout_categories: dict[str, int]
    license: str
    packages: dict[str, str]


@dataclass(frozen=True)
class Parts:
    """The drawings of a set by their use. `seen` has one drawing of each training concept, for scoring; it may be empty."""

    train: list[Drawn]
    heldout: list[Drawn]
    seen: list[Drawn]
    licence: bytes  # LICENSE.txt
    packages: dict[str, str]


def build_set(
    output: Path, about: EmojiSet, draw: Callable[[], Parts], pixels: int, heldout: int, limit: int | None
) -> tuple[EmojiBuild, bool]:
    """Build the folder, and return (its content, whether it was built by this call). A complete build is left as it is.

    Raises UserError if `output` holds something else.
    """
    output = Path(output)
    settings = (_FORMAT, pixels, heldout, limit)
    found = _existing(output, about, settings)
    if found is not None:
        _log.info("%s holds a complete build already", output)
        return found, False
    with new_folder(output) as folder:  # made first, so that a place that cannot be written to fails before anything is drawn
        build = _write(folder, about, draw(), settings)
    _log.info("%s: %d training images in %d shards, %d concepts held out", output, build.train, build.train_shards, build.heldout)
    return build, True


def _existing(output: Path, about: EmojiSet, settings: Settings) -> EmojiBuild | None:
    """Return the complete build in a folder, or None if the folder is missing or empty.

    Raises UserError if the folder holds anything else.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    try:
        build = EmojiBuild(**json.loads((output / "dataset.json").read_text(encoding="utf-8")))
        if about.package not in build.packages:
            raise ValueError("another set")
    except (OSError, ValueError, TypeError):
        raise UserError(
            f"{output} is not empty and does not hold a build of {about.title}: remove it or give another --output"
        ) from None
    if (build.format, build.pixels, build.wanted, build.limit) != settings:
        raise UserError(f"{output} holds a build with other settings ({build.pixels} pixels): remove it or give another --output")
    return build


def shuffled(name: str) -> bytes:
    """Return a sort key that looks random and never changes."""
    return hashlib.sha256(name.encode()).digest()


def render(svg: str, pixels: int, background: str | None) -> Image.Image:
    """Render an SVG as a square image with `pixels` per side. `background`: a color; None leaves it transparent.

    System fonts are left out, because the result would depend on the machine.
    """
    draw = require("resvg_py").svg_to_bytes
    drawn = draw(
        svg_string=svg, width=pixels, height=pixels, background=background, dpi=96, skip_system_fonts=True
    )  # dpi resolves sizes in pt or mm
    return Image.open(io.BytesIO(bytes(drawn)))


def as_png(image: Image.Image) -> bytes:
    """Return the image in RGB as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def split(drawings: Sequence[Drawn], heldout: int) -> tuple[list[Drawn], list[Drawn]]:
    """Return (training drawings, one drawing of each held-out concept).

    About `heldout` concepts are held out, the same share of each category. A concept without a category, or in the
    category Component (bare skin tones and hair), is never held out.
    """
    neutral = {drawn[0].concept: drawn for drawn in plainest(drawings)}
    by_category: dict[str, list[str]] = {}
    for concept, (emoji, _) in neutral.items():
        if emoji.category not in (None, "Component"):
            by_category.setdefault(str(emoji.category), []).append(concept)
    share = min(heldout / max(1, sum(map(len, by_category.values()))), 0.5)
    held: set[str] = set()
    for concepts in by_category.values():
        concepts.sort(key=shuffled)
        held.update(concepts[: round(share * len(concepts))])
    train = [drawn for drawn in drawings if drawn[0].concept not in held]
    return train, [drawn for concept, drawn in neutral.items() if concept in held]


def plainest(drawings: Iterable[Drawn]) -> list[Drawn]:
    """Return the most neutral drawing of each concept, in the order in which the concepts first occur."""
    members: dict[str, list[Drawn]] = {}
    for drawn in drawings:
        members.setdefault(drawn[0].concept, []).append(drawn)
    return [min(group, key=_plainness) for group in members.values()]


def _plainness(drawn: Drawn) -> tuple[int, int, str]:
    """Return a sort key that is lowest for the most neutral drawing."""
    return drawn[0].modifiers, drawn[0].hexcode.count("-"), drawn[0].hexcode


def _write(folder: Path, about: EmojiSet, parts: Parts, settings: Settings) -> EmojiBuild:
    """Write all files of the folder, and return its description."""
    classes = sorted({str(emoji.category) for emoji, _ in parts.heldout})
    shards = _write_shards(folder, "train", (sample(about, *drawn) for drawn in parts.train))
    for name, drawings in (("heldout", parts.heldout), ("seen", [d for d in parts.seen if d[0].category in classes])):
        if drawings:
            labels = (str(classes.index(str(emoji.category))).encode() for emoji, _ in drawings)
            samples = ({**sample(about, *drawn), "cls": label} for drawn, label in zip(drawings, labels, strict=True))
            _write_shards(folder, name, samples)
    build = EmojiBuild(
        *settings,
        train=len(parts.train),
        train_shards=shards,
        train_concepts=len({emoji.concept for emoji, _ in parts.train}),
        heldout=len(parts.heldout),
        heldout_categories=dict(sorted(Counter(str(emoji.category) for emoji, _ in parts.heldout).items())),
        license=about.license,
        packages=parts.packages,
    )
    (folder / "LICENSE.txt").write_bytes(parts.licence)
    (folder / "DATASET.md").write_text(_card(about, build), encoding="utf-8")
    (folder / "classnames.txt").write_text("\n".join(classes) + "\n", encoding="utf-8")
    (folder / "dataset.json").write_text(json.dumps(asdict(build), indent=2) + "\n", encoding="utf-8")
    return build


def _write_shards(folder: Path, name: str, samples: Iterable[dict[str, str | bytes]]) -> int:
    """Write name-0000.tar and so on, and return the number of shards. With a fixed mtime, equal samples give equal bytes."""
    import webdataset

    options = {"maxcount": _SHARD_SAMPLES, "verbose": 0, "encoder": False, "mtime": 0}
    with webdataset.ShardWriter(str(folder / f"{name}-%04d.tar"), **options) as writer:
        for entry in samples:
            writer.write(entry)
        return int(writer.shard)


def sample(about: EmojiSet, emoji: Emoji, png: bytes) -> dict[str, str | bytes]:
    """Return the members of one drawing in the form that webdataset's writer takes."""
    where = f"{emoji.name}, {emoji.subcategory.replace('-', ' ')}" if emoji.subcategory else emoji.name
    meta = {
        "captions": list(dict.fromkeys([emoji.name, *emoji.aliases, where])),
        "name": emoji.name,
        "category": emoji.category,
        "subcategory": emoji.subcategory,
        "emoji": emoji.emoji,
        "hexcode": emoji.hexcode,
        "concept": emoji.concept,
        "license": about.license,
        "source": about.source,
    }
    text = json.dumps(meta, ensure_ascii=False, sort_keys=True)
    return {"__key__": emoji.hexcode.lower(), "png": png, "txt": emoji.name.encode(), "json": text.encode()}


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of pip packages."""
    return {name: version(name) for name in packages}


def _card(about: EmojiSet, build: EmojiBuild) -> str:
    """Return the text of DATASET.md."""
    packages = ", ".join(f"{name} {number}" for name, number in build.packages.items())
    return f"""# {about.title} image-text shards

{about.attribution}
Changes: rendered to {build.pixels} x {build.pixels} pixels on white, and paired with Unicode's English names.
These shards are under the same licence, {about.license}.

- training: {build.train} images of {build.train_concepts} concepts, in {build.train_shards} shards
- held out: {build.heldout} concepts, one image each; no other image of them is in the training shards
- built from {packages}
"""
