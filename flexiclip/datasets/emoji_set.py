"""Packages that npm's registry holds: fetched by npm itself, held to a pinned hash; only pictures and JSON are unpacked.

`npm pack` downloads one tarball from the registry that npm is set to (NPM_CONFIG_REGISTRY, .npmrc) and runs nothing of it. Its
hash is checked here once more, against the one in the code: a registry or mirror can only give the bytes that were looked at.

Drawings of emoji as a folder of image-text shards: the hold-out of whole concepts, the shards, the card. For every vendor.

    DIR/train-0000.tar ...     every drawing of the training concepts, skin tones included: png, txt, json
    DIR/heldout-0000.tar       one neutral drawing of each held-out concept: png, txt, json, cls
    DIR/classnames.txt         the held-out drawings' categories; `cls` counts them from 0
    DIR/dataset.json           counts and settings; LICENSE.txt and DATASET.md name licence and source

`txt` is the Unicode name; json: captions (name, aliases, name with subcategory), name, category, subcategory, emoji, hexcode,
concept, license, source. Images are RGB on white. The same packages give the same bytes.
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
from typing import Any

from PIL import Image

from flexiclip.datasets.emoji_names import Emoji
from flexiclip.errors import UserError
from flexiclip.files import new_folder

_TAKEN = {".json", ".png", ".svg", ".webp"}


@dataclass(frozen=True)
class NpmPackage:
    """integrity: of the tarball, as npm publishes it: `sha512-` and base64."""

    name: str
    version: str
    integrity: str

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


def fetch(package: NpmPackage, folder: Path) -> Path:
    """Download the package into `folder`, an empty one; the folder with its pictures and JSON files. Raises UserError."""
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
    """Write the pictures and JSON files of a package into `folder`; links and paths that lead out of it are passed over."""
    with tarfile.open(tarball, "r:gz") as archive:
        for member in archive:
            inside = PurePosixPath(*PurePosixPath(member.name).parts[1:])  # the first is the package's own folder
            content = archive.extractfile(member) if member.isreg() and inside.suffix in _TAKEN else None
            if content is None or inside.is_absolute() or ".." in inside.parts:
                continue
            place = folder / inside
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content.read())
    return folder


def installed_version(folder: Path, package: NpmPackage) -> str:
    """The version in a package's folder. Raises UserError when it is no folder of that package."""
    try:
        about = json.loads((folder / "package.json").read_text(encoding="utf-8"))
        name, version = about["name"], str(about["version"])
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(
            f"{folder} is no package of npm: no package.json with a name and version; give {package} unpacked"
        ) from None
    if name != package.name:
        raise UserError(f"{folder} holds the npm package {name!r}; needed is {package}")
    return version


_FORMAT = 1  # of the folder; a build of another one is not taken for complete
_SHARD_SAMPLES = 500
_log = logging.getLogger(__name__)

Drawn = tuple[Emoji, bytes]
"""An emoji and its PNG."""


@dataclass(frozen=True)
class EmojiSet:
    """Whose drawings they are and under which licence. package: the one that holds them, by which a build is known."""

    title: str
    package: str
    license: str
    source: str  # of each sample
    attribution: str  # the first paragraph of the card


@dataclass(frozen=True)
class EmojiBuild:
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


@dataclass(frozen=True)
class Parts:
    """The drawings of a set by what they are for. seen: one of each training concept, for scoring; may be empty."""

    train: list[Drawn]
    heldout: list[Drawn]
    seen: list[Drawn]
    licence: bytes  # LICENSE.txt
    packages: dict[str, str]


def build_set(
    output: Path, about: EmojiSet, draw: Callable[[], Parts], pixels: int, heldout: int, limit: int | None
) -> tuple[EmojiBuild, bool]:
    """Build the folder; (what it holds, whether it was built just now). A complete build is left as it is.

    Raises UserError when `output` holds something else.
    """
    output = Path(output)
    found = _existing(output, about, (_FORMAT, pixels, heldout, limit))
    if found is not None:
        _log.info("%s holds a complete build already", output)
        return found, False
    settings = {"format": _FORMAT, "pixels": pixels, "wanted": heldout, "limit": limit}
    with new_folder(output) as folder:  # made first: a place where nothing can be written is known before anything is drawn
        build = _write(folder, about, draw(), settings)
    _log.info("%s: %d training images in %d shards, %d concepts held out", output, build.train, build.train_shards, build.heldout)
    return build, True


def _existing(output: Path, about: EmojiSet, settings: tuple[int, int, int, int | None]) -> EmojiBuild | None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    try:
        build = EmojiBuild(**json.loads((output / "dataset.json").read_text(encoding="utf-8")))
        if about.package not in build.packages:
            raise ValueError("another set")
    except (OSError, ValueError, TypeError):
        raise UserError(f"{output} is not empty and holds no {about.title} build: remove it or give another --output") from None
    if (build.format, build.pixels, build.wanted, build.limit) != settings:
        raise UserError(f"{output} holds a build with other settings ({build.pixels} pixels): remove it or give another --output")
    return build


def shuffled(name: str) -> bytes:
    """A sort key that looks random and is the same for ever."""
    return hashlib.sha256(name.encode()).digest()


def render(svg_to_bytes: Callable[..., bytes], svg: str, pixels: int) -> bytes:
    """An SVG as a square RGB PNG on white.

    dpi resolves sizes in pt or mm; system fonts are left out because the bytes would depend on the machine.
    """
    rendered = svg_to_bytes(svg_string=svg, width=pixels, height=pixels, background="white", dpi=96, skip_system_fonts=True)
    return as_png(Image.open(io.BytesIO(bytes(rendered))).convert("RGB"))


def as_png(image: Image.Image) -> bytes:
    """The image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def split(drawings: Sequence[Drawn], heldout: int) -> tuple[list[Drawn], list[Drawn]]:
    """(training drawings, one drawing of each held-out concept): about `heldout` concepts, from each category its share.

    A concept without a category, or of category Component (bare skin tones and hair), is never held out.
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
    """One drawing of each concept, the most neutral, in the order in which the concepts first come."""
    members: dict[str, list[Drawn]] = {}
    for drawn in drawings:
        members.setdefault(drawn[0].concept, []).append(drawn)
    return [min(group, key=_plainness) for group in members.values()]


def _plainness(drawn: Drawn) -> tuple[int, int, str]:
    return drawn[0].modifiers, drawn[0].hexcode.count("-"), drawn[0].hexcode


def _write(folder: Path, about: EmojiSet, parts: Parts, settings: dict[str, Any]) -> EmojiBuild:
    classes = sorted({str(emoji.category) for emoji, _ in parts.heldout})
    shards = _write_shards(folder, "train", (sample(about, *drawn) for drawn in parts.train))
    for name, drawings in (("heldout", parts.heldout), ("seen", [d for d in parts.seen if d[0].category in classes])):
        if drawings:
            labelled = (
                {**sample(about, *drawn), "cls": str(classes.index(str(drawn[0].category))).encode()} for drawn in drawings
            )
            _write_shards(folder, name, labelled)
    build = EmojiBuild(
        **settings,
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


def _write_shards(folder: Path, name: str, samples: Iterable[dict[str, Any]]) -> int:
    """Write name-0000.tar and so on; the number of shards. A fixed mtime makes equal samples equal bytes."""
    import webdataset

    options = {"maxcount": _SHARD_SAMPLES, "verbose": 0, "encoder": False, "mtime": 0}
    with webdataset.ShardWriter(str(folder / f"{name}-%04d.tar"), **options) as writer:
        for entry in samples:
            writer.write(entry)
        return int(writer.shard)


def sample(about: EmojiSet, emoji: Emoji, png: bytes) -> dict[str, Any]:
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
        "license": about.license,
        "source": about.source,
    }
    text = json.dumps(meta, ensure_ascii=False, sort_keys=True)
    return {"__key__": emoji.hexcode.lower(), "png": png, "txt": emoji.name.encode(), "json": text.encode()}


def installed(packages: Iterable[str]) -> dict[str, str]:
    """The versions of pip packages."""
    return {name: version(name) for name in packages}


def _card(about: EmojiSet, build: EmojiBuild) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in build.packages.items())
    return f"""# {about.title} image-text shards

{about.attribution}
Changes: rendered to {build.pixels} x {build.pixels} pixels on white, and paired with Unicode's English names.
These shards are under the same licence, {about.license}.

- training: {build.train} images of {build.train_concepts} concepts, in {build.train_shards} shards
- held out: {build.heldout} concepts, one image each; no other image of them is in the training shards
- built from {packages}
"""
