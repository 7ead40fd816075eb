"""`flexiclip data ...`: the commands that build, index and check shards."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from flexiclip.cli.parser import Parser, positive
from flexiclip.files import writing

if TYPE_CHECKING:
    from flexiclip.datasets.emoji_set import EmojiBuild


def add_data(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the command `data` and its subcommands."""
    about = "build, index and check shards"
    data = commands.add_parser("data", help=about, description=about).add_subparsers(
        required=True, metavar="COMMAND", parser_class=Parser
    )
    for name, text in (("openmoji", "OpenMoji's"), ("noto", "Noto's"), ("fluent", "Fluent's")):
        about = f"build training shards and held-out shards from {text} emoji"
        sub = data.add_parser(name, help=about, description=about)
        sub.add_argument("--output", type=Path, required=True, help="folder in which the shards are written")
        sub.add_argument("--pixels", type=positive, default=96, help="side of the images in pixels; default: 96")
        sub.set_defaults(command=_openmoji if name == "openmoji" else _vendor, vendor=name)
        if name != "openmoji":
            sub.add_argument("--package", type=Path, help="folder of the unpacked npm package; default: npm fetches it")
        if name == "fluent":
            sub.add_argument("--style", default="3d", choices=("3d", "flat"), help="style of the drawings; default: 3d")
    about = "draw silhouettes of things that are filled with the textures of other things"
    cues = data.add_parser("cue-conflict", help=about, description=about)
    cues.add_argument(
        "--output", type=Path, required=True, help="folder in which the SHAPE/SHAPE1-TEXTURE2.png images are written"
    )
    cues.add_argument("--pixels", type=positive, default=224, help="side of the images in pixels; default: 224")
    cues.set_defaults(command=_cue_conflict)
    for name, command, text in (
        ("index", _index, "count the samples of shards, and write the indices of their offsets"),
        ("check", _check, "decode every sample as training does and name the bad ones; the exit code is 1 if there are any"),
        ("tokenizer", _tokenizer, "train a sentencepiece tokenizer on the captions of shards"),
    ):
        sub = data.add_parser(name, help=text, description=text)
        sub.add_argument("shards", nargs="+", help="files, globs, or brace ranges in quotes: 'train-{0000..0015}.tar'")
        sub.set_defaults(command=command)
        if name != "index":
            sub.add_argument(
                "--captions", default="txt", help="members or json:KEY that hold captions, separated by commas; default: txt"
            )
        if name == "check":
            sub.add_argument(
                "--images",
                default="jpg,jpeg,png,webp",
                help="members that hold images, separated by commas; default: jpg,jpeg,png,webp",
            )
        if name == "tokenizer":
            sub.add_argument("--output", type=Path, required=True, help="the .model file to write")
            sub.add_argument("--vocab-size", type=positive, default=4096, help="number of tokens; default: 4096")
            sub.add_argument(
                "--keep-case", action="store_true", help="keep upper case; without this option captions are lower-cased"
            )


def _openmoji(arguments: argparse.Namespace) -> None:
    from flexiclip.datasets.vendors import build_openmoji

    _say_built(arguments.output, *build_openmoji(arguments.output, pixels=arguments.pixels))


def _vendor(arguments: argparse.Namespace) -> None:
    from flexiclip.datasets.vendors import FLUENT, NOTO, build_vendor

    vendor = NOTO if arguments.vendor == "noto" else FLUENT[arguments.style]
    _say_built(arguments.output, *build_vendor(arguments.output, vendor, arguments.package, pixels=arguments.pixels))


def _cue_conflict(arguments: argparse.Namespace) -> None:
    from flexiclip.datasets.cue_conflict import SHAPES, TEXTURES, build_cue_conflict

    count = build_cue_conflict(arguments.output, arguments.pixels)
    print(f"{arguments.output} holds {count} images of {len(SHAPES)} shapes in {len(TEXTURES)} textures")


def _say_built(output: Path, build: EmojiBuild, fresh: bool) -> None:
    print(
        f"{output} {'holds' if fresh else 'already held'} {build.train} training images of {build.train_concepts} "
        f"concepts in {build.train_shards} shards, and {build.heldout} held-out concepts; licence {build.license}"
    )


def _index(arguments: argparse.Namespace) -> None:
    from flexiclip.data.index import index_shards, require_whole
    from flexiclip.data.remote import expand_shards

    indices = require_whole(index_shards(expand_shards(arguments.shards)))
    for index in indices:
        print(f"{len(index):>10} samples  {index.content_bytes:>14} bytes  {index.url}")
    size = sum(index.content_bytes for index in indices)
    print(f"{sum(map(len, indices)):>10} samples  {size:>14} bytes  in {len(indices)} shards")


def _check(arguments: argparse.Namespace) -> int:
    from flexiclip.data.remote import expand_shards
    from flexiclip.data.samples import check_shards

    bad = check_shards(expand_shards(arguments.shards), _listed(arguments.images), _listed(arguments.captions))
    for sample in bad:
        print(sample)
    print(f"{len(bad)} bad samples" if bad else "every sample is good")
    return 1 if bad else 0


def _listed(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _tokenizer(arguments: argparse.Namespace) -> None:
    from flexiclip.config import DataConfig
    from flexiclip.data.loader import iter_captions
    from flexiclip.data.tokenizers import train_sentencepiece

    captions = iter_captions(DataConfig(train=tuple(arguments.shards), captions=tuple(_listed(arguments.captions))))
    with writing(f"--output {arguments.output}"):
        path = train_sentencepiece(captions, arguments.output, arguments.vocab_size, lowercase=not arguments.keep_case)
    print(f"wrote {path}: tokenizer.kind=sentencepiece tokenizer.path={path}")
