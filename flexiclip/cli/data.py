"""`flexiclip data ...`: the commands that build, index and check shards."""

from __future__ import annotations

import argparse
from pathlib import Path

from flexiclip.cli.pack import add_pack
from flexiclip.cli.parser import Parser, add_command, add_group, positive
from flexiclip.files import writing
from flexiclip.progress import watch


def add_data(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the command `data` and its subcommands."""
    data = add_group(commands, "data", "build, index and check shards", "COMMAND")
    for name, text in (("openmoji", "OpenMoji's"), ("noto", "Noto's"), ("fluent", "Fluent's")):
        sub = add_command(data, name, _emoji, f"build training shards and held-out shards from {text} emoji")
        sub.add_argument("--output", type=Path, required=True, help="folder in which the shards are written")
        sub.add_argument("--pixels", type=positive, default=96, help="side of the images in pixels; default: 96")
        sub.set_defaults(vendor=name)
        if name != "openmoji":
            sub.add_argument("--package", type=Path, help="folder of the unpacked npm package; default: npm fetches it")
        if name == "fluent":
            sub.add_argument("--style", default="3d", choices=("3d", "flat"), help="style of the drawings; default: 3d")
    add_pack(data)
    about = "draw silhouettes of things that are filled with the textures of other things"
    cues = add_command(data, "cue-conflict", _cue_conflict, about)
    cues.add_argument(
        "--output", type=Path, required=True, help="folder in which the SHAPE/SHAPE1-TEXTURE2.png images are written"
    )
    cues.add_argument("--pixels", type=positive, default=224, help="side of the images in pixels; default: 224")
    for name, command, text in (
        ("index", _index, "count the samples of shards, and write the indices of their offsets"),
        ("check", _check, "decode every sample as training does and name the bad ones; the exit code is 1 if there are any"),
        ("tokenizer", _tokenizer, "train a sentencepiece tokenizer on the captions of shards"),
    ):
        sub = add_command(data, name, command, text)
        sub.add_argument("shards", nargs="+", help="files, globs, or brace ranges in quotes: 'train-{0000..0015}.tar'")
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
            sub.add_argument(
                "--tokenizer",
                help="also count tokens: clip, a sentencepiece .model file, or the folder of a Hugging Face tokenizer",
            )
        if name == "tokenizer":
            sub.add_argument("--output", type=Path, required=True, help="the .model file to write")
            sub.add_argument("--vocab-size", type=positive, default=4096, help="number of tokens; default: 4096")
            sub.add_argument(
                "--keep-case", action="store_true", help="keep upper case; without this option captions are lower-cased"
            )


def _emoji(arguments: argparse.Namespace) -> None:
    from flexiclip.datasets.vendors import FLUENT, NOTO, build_openmoji, build_vendor

    output, pixels = arguments.output, arguments.pixels
    if arguments.vendor == "openmoji":
        build, fresh = build_openmoji(output, pixels=pixels)
    else:
        vendor = NOTO if arguments.vendor == "noto" else FLUENT[arguments.style]
        build, fresh = build_vendor(output, vendor, arguments.package, pixels=pixels)
    print(
        f"{output} {'holds' if fresh else 'already held'} {build.train} training images of {build.train_concepts} "
        f"concepts in {build.train_shards} shards, and {build.heldout} held-out concepts; licence {build.license}"
    )


def _cue_conflict(arguments: argparse.Namespace) -> None:
    from flexiclip.datasets.cue_conflict import SHAPES, TEXTURES, build_cue_conflict

    count = build_cue_conflict(arguments.output, arguments.pixels)
    print(f"{arguments.output} holds {count} images of {len(SHAPES)} shapes in {len(TEXTURES)} textures")


def _index(arguments: argparse.Namespace) -> None:
    from flexiclip.data.index import index_shards, require_whole
    from flexiclip.data.remote import expand_shards

    indices = require_whole(index_shards(expand_shards(arguments.shards)))
    for index in indices:
        print(f"{len(index):>10} samples  {index.content_bytes:>14} bytes  {index.url}")
    size = sum(index.content_bytes for index in indices)
    print(f"{sum(map(len, indices)):>10} samples  {size:>14} bytes  in {len(indices)} shards")


def _check(arguments: argparse.Namespace) -> int:
    from flexiclip.data.check import check_shards, counting_tokenizer
    from flexiclip.data.remote import expand_shards

    tokenizer = counting_tokenizer(arguments.tokenizer) if arguments.tokenizer else None
    images, captions = _listed(arguments.images), _listed(arguments.captions)
    found = check_shards(expand_shards(arguments.shards), images, captions, tokenizer, watch("checking"))
    for sample in found.bad:
        print(sample)
    print("\n".join(found.lines()))
    return 1 if found.bad else 0


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
