"""The composition root: reads the command line and joins the parts, each imported only by the command that needs it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from flexiclip.errors import UserError

if TYPE_CHECKING:
    from flexiclip.data.sources.emoji_set import EmojiBuild


class _Parser(argparse.ArgumentParser):
    """argparse whose complaints are UserErrors: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def run(argv: Sequence[str]) -> int:
    """Run one command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int | None] = arguments.command
    return command(arguments) or 0


def _parser() -> argparse.ArgumentParser:
    from flexiclip import __version__

    parser = _Parser(prog="flexiclip", description="Image-text models whose image tower works at every patch size.")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # DeepSpeed's launcher adds it; ranks.py reads the environment
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    def add(name: str, command: Callable[[argparse.Namespace], int | None], text: str) -> _Parser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        return sub

    for name, command, text in (("train", _train, "train a recipe"), ("show-config", _show_config, "print a recipe, resolved")):
        sub = add(name, command, text)
        sub.add_argument("recipe", help="a YAML file, or the name of an installed recipe")
        sub.add_argument("overrides", nargs="*", metavar="key=value", help="dotted.key=value, for example train.steps=20")

    sub = add("eval", _eval, "score a model on suites, at every sequence length")
    sub.add_argument("model", nargs="+", help="model folders, open_clip:NAME[/PRETRAINED], others' folders; A+pi flexes A")
    sub.add_argument("--suite", action="append", required=True, help="the name of an installed suite or a file; may be repeated")
    sub.add_argument("--seqhw", type=_lengths, help="grid sides, for example 5,8,15; default: those of the training")
    sub.add_argument("--output", type=Path, help="folder for results.json, results.csv, plots and report.html")
    sub.add_argument("--device", default=None, help="cpu or cuda; default: cuda where there is one")
    sub.add_argument("--batch-size", type=int, default=128)
    sub.add_argument("--workers", type=int, default=2, help="threads that decode images")
    sub.add_argument("--embeddings", type=Path, help="folder that keeps embeddings, so that they are computed once")
    sub.add_argument("--tolerance", type=float, default=1.0, help="points below the best that still do; default: 1")
    sub.add_argument("--budget", help="what an image may cost, '5 GFLOPs' or '20 ms': the best length within it is named")
    sub.add_argument("--cascade", help="SHORT:LONG, the lengths that rank and re-rank; default: the shortest and the longest")
    sub = add("import", _import, "turn published weights into a model folder")
    sub.add_argument("source", help="a weight file, a Hugging Face folder, or open_clip's NAME/PRETRAINED (a tag or a file)")
    sub.add_argument("--format", required=True, help="big_vision, timm, open_clip, siglip or transformers")
    sub.add_argument("--output", type=Path, required=True, help="the model folder to write")
    sub.add_argument("--text", type=Path, help="the text tower's sentencepiece model, where the source holds no tokenizer")
    sub.add_argument("--arch", help="timm's or open_clip's name of the architecture, where the file's shapes do not say")
    sub.add_argument("--heads", type=int, help="of the image tower; default: width/64, or as published")
    sub.add_argument("--image-size", type=int, help="pixels; default: what kernel and grid cover")
    _add_export(commands)
    _add_data(commands)
    _add_plan(add("plan", _plan, "what a recipe needs of a cluster: memory, traffic, images/s and hours"))
    return parser


def _add_plan(sub: _Parser) -> None:
    sub.add_argument("recipe", help="a YAML file, or the name of an installed recipe")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="dotted.key=value, for example engine.zero_stage=3")
    sub.add_argument("--nodes", type=int, default=1)
    sub.add_argument("--gpus-per-node", type=int, default=1, help="ranks of a node; with --device cpu they share it")
    sub.add_argument("--device", required=True, help="h100, a100 or cpu; a CPU's speed is measured here")
    sub.add_argument("--mfu", type=float, help="share of the peak FLOP/s that training reaches; default: 0.4, for cpu 0.6")
    sub.add_argument("--samples", help="training pairs of an epoch, for example 400M, where train.steps is in epochs")
    sub.add_argument(
        "--json", type=Path, nargs="?", const=Path("-"), help="write all figures to this file; without one, print them"
    )


def _add_export(commands: argparse._SubParsersAction[_Parser]) -> None:
    export = commands.add_parser("export", help="write encoders and models that other software runs").add_subparsers(
        required=True, metavar="WHAT", parser_class=_Parser
    )
    for name, command, text in (
        ("image", _export_image, "write the image encoder, one file a length"),
        ("text", _export_text, "write the text encoder"),
        ("model", _export_model, "write the whole model in another library's format"),
    ):
        sub = export.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        sub.add_argument("model", help="a model folder or a run folder")
        sub.add_argument("--output", type=Path, required=True, help="the file to write; for most model formats a new folder")
        if name == "model":
            sub.add_argument("--format", required=True, help="open_clip, timm, big_vision or transformers")
        else:
            sub.add_argument("--format", default="onnx", help="onnx or torch; default: onnx")
            sub.add_argument("--quantize", help="int8: weights of the blocks, onnx only; its cost and gain are printed")
        if name != "text":
            sub.add_argument(
                "--seqhw", type=_lengths, default=[], help="grid side to bake in, for example 15; default: the model's"
            )
            sub.add_argument("--images", help="a folder or shards of images to compare on; default: drawn pictures")
        if name == "image":
            sub.add_argument("--normalize-inside", action="store_true", help="the encoder takes uint8 pixels and normalises them")


def _add_data(commands: argparse._SubParsersAction[_Parser]) -> None:
    data = commands.add_parser("data", help="build, index and check shards").add_subparsers(
        required=True, metavar="COMMAND", parser_class=_Parser
    )
    for name, text in (("openmoji", "OpenMoji's"), ("noto", "Noto's"), ("fluent", "Fluent's")):
        sub = data.add_parser(name, help=f"build train and held-out shards from {text} emoji")
        sub.add_argument("--output", type=Path, required=True, help="folder for the shards")
        sub.add_argument("--pixels", type=int, default=96, help="side of the rendered images")
        sub.set_defaults(command=_data_openmoji if name == "openmoji" else _data_vendor, vendor=name)
        if name != "openmoji":
            sub.add_argument("--package", type=Path, help="the unpacked npm package; default: npm fetches it")
        if name == "fluent":
            sub.add_argument("--style", default="3d", choices=("3d", "flat"), help="default: 3d")
    for name, command, text in (
        ("index", _data_index, "count the samples of shards and write their offset indices"),
        ("check", _data_check, "name every bad sample; exit 1 if there is one"),
        ("tokenizer", _data_tokenizer, "train a sentencepiece tokenizer on the captions of shards"),
    ):
        sub = data.add_parser(name, help=text, description=text)
        sub.add_argument("shards", nargs="+", help="files, brace ranges (train-{0000..0015}.tar) and globs")
        sub.set_defaults(command=command)
        if name != "index":
            sub.add_argument("--captions", default="txt", help="member or json:KEY, comma-separated; default: txt")
        if name == "check":
            sub.add_argument("--images", default="jpg,jpeg,png,webp", help="image members; default: jpg,jpeg,png,webp")
        if name == "tokenizer":
            sub.add_argument("--output", type=Path, required=True, help="the .model file to write")
            sub.add_argument("--vocab-size", type=int, default=4096)
            sub.add_argument("--keep-case", action="store_true", help="do not lower-case the captions")


def _lengths(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of grid sides such as 5,8,15") from None


def _train(arguments: argparse.Namespace) -> int:
    """A run that a signal has stopped is saved and ends with 0, or with FLEXICLIP_STOPPED_CODE where a scheduler must know."""
    from flexiclip.config import load
    from flexiclip.train.loop import train

    config = load(arguments.recipe, arguments.overrides)
    stopped = os.environ.get("FLEXICLIP_STOPPED_CODE", "0")
    if not stopped.isdecimal() or int(stopped) > 255:
        raise UserError(f"FLEXICLIP_STOPPED_CODE={stopped} must be an exit code, 0 to 255")
    evaluators = None
    if config.eval.suites:
        from flexiclip_eval import make_evaluators

        evaluators = make_evaluators(
            config.eval.suites, seqhw=config.eval.seqhw, device=_device(None), batch_size=config.eval.batch_size
        )
    return 0 if train(config, evaluators) else int(stopped)


def _plan(arguments: argparse.Namespace) -> None:
    import json

    from flexiclip.config import load
    from flexiclip.plan.plan import Cluster, make_plan
    from flexiclip.plan.table import show

    cluster = Cluster(arguments.nodes, arguments.gpus_per_node, arguments.device, arguments.mfu)
    plan = make_plan(load(arguments.recipe, arguments.overrides), cluster, _samples(arguments.samples))
    if arguments.json is not None:
        text = json.dumps(plan.to_dict(), indent=2) + "\n"
        if str(arguments.json) == "-":
            print(text, end="")
            return
        arguments.json.write_text(text, encoding="utf-8")
    show(plan)


def _samples(text: str | None) -> int | None:
    """A number of pairs as durations write it: 400M, or 400M samples."""
    from flexiclip.config import parse_duration

    if text is None:
        return None
    duration = parse_duration(text)
    if duration.unit not in ("steps", "samples") or duration.value < 1:  # a bare number reads as steps
        raise UserError(f"--samples {text}: give a number of pairs, for example 400M")
    return int(duration.value)


def _show_config(arguments: argparse.Namespace) -> None:
    from flexiclip.config import dump, load

    print(dump(load(arguments.recipe, arguments.overrides)), end="")


def _eval(arguments: argparse.Namespace) -> None:
    from flexiclip_eval import evaluate_suites
    from flexiclip_eval.choices.cascade import parse_cascade
    from flexiclip_eval.choices.length import parse_budget

    from flexiclip.train.processes.ranks import joined_ranks

    with joined_ranks(process_group=False):
        evaluate_suites(
            arguments.model,
            arguments.suite,
            seqhw=arguments.seqhw,
            device=_device(arguments.device),
            batch_size=arguments.batch_size,
            output=arguments.output,
            workers=arguments.workers,
            embeddings=arguments.embeddings,
            tolerance=arguments.tolerance,
            budget=parse_budget(arguments.budget) if arguments.budget is not None else None,
            cascade=parse_cascade(arguments.cascade) if arguments.cascade is not None else None,
        )


def _import(arguments: argparse.Namespace) -> None:
    from flexiclip.imports import ImportOptions, import_weights

    options = ImportOptions(arguments.arch, arguments.text, arguments.heads, arguments.image_size)
    for line in import_weights(arguments.source, arguments.format, arguments.output, options):
        print(line)


def _export_image(arguments: argparse.Namespace) -> int:
    from flexiclip.export.run import EncoderOptions, export_image

    options = EncoderOptions(arguments.format, arguments.seqhw, arguments.quantize, arguments.normalize_inside, arguments.images)
    return _report(lambda: export_image(arguments.model, arguments.output, options))


def _export_text(arguments: argparse.Namespace) -> int:
    from flexiclip.export.run import EncoderOptions, export_text

    options = EncoderOptions(arguments.format, quantize=arguments.quantize)
    return _report(lambda: export_text(arguments.model, arguments.output, options))


def _export_model(arguments: argparse.Namespace) -> int:
    from flexiclip.export.model import export_model

    if len(arguments.seqhw) > 1:
        raise UserError(f"--seqhw {','.join(map(str, arguments.seqhw))}: one model has one length; export it once a length")
    seqhw = arguments.seqhw[0] if arguments.seqhw else None
    return _report(lambda: export_model(arguments.model, arguments.output, arguments.format, seqhw, arguments.images))


def _report(export: Callable[[], list[str]]) -> int:
    """Print what an export did; 1 with the figures when what it wrote is not the model."""
    from flexiclip.export.agreement import Disagreement

    try:
        print("\n".join(export()))
    except Disagreement as error:
        print(error)
        return 1
    return 0


def _data_openmoji(arguments: argparse.Namespace) -> None:
    from flexiclip.data.sources.openmoji import build_openmoji

    _say_built(arguments.output, *build_openmoji(arguments.output, pixels=arguments.pixels))


def _data_vendor(arguments: argparse.Namespace) -> None:
    from flexiclip.data.sources.vendors import FLUENT, NOTO, build_vendor

    vendor = NOTO if arguments.vendor == "noto" else FLUENT[arguments.style]
    _say_built(arguments.output, *build_vendor(arguments.output, vendor, arguments.package, pixels=arguments.pixels))


def _say_built(output: Path, build: EmojiBuild, fresh: bool) -> None:
    print(
        f"{output} {'holds' if fresh else 'already held'} {build.train} training images of {build.train_concepts} "
        f"concepts in {build.train_shards} shards, and {build.heldout} held-out concepts; licence {build.license}"
    )


def _data_index(arguments: argparse.Namespace) -> None:
    from flexiclip.data.check import describe_shards
    from flexiclip.data.shards import expand_shards

    rows = describe_shards(expand_shards(arguments.shards))
    for row in rows:
        print(f"{row.samples:>10} samples  {row.bytes:>14} bytes  {row.shard}")
    print(f"{sum(row.samples for row in rows):>10} samples  {sum(row.bytes for row in rows):>14} bytes  in {len(rows)} shards")


def _data_check(arguments: argparse.Namespace) -> int:
    from flexiclip.data.check import check_shards
    from flexiclip.data.shards import expand_shards

    bad = check_shards(expand_shards(arguments.shards), arguments.images.split(","), arguments.captions.split(","))
    for sample in bad:
        print(sample)
    print(f"{len(bad)} bad samples" if bad else "every sample is good")
    return 1 if bad else 0


def _data_tokenizer(arguments: argparse.Namespace) -> None:
    from flexiclip.config import DataConfig
    from flexiclip.data.captions import iter_captions
    from flexiclip.data.tokenizers import train_sentencepiece

    captions = iter_captions(DataConfig(train=tuple(arguments.shards), captions=tuple(arguments.captions.split(","))))
    path = train_sentencepiece(captions, arguments.output, arguments.vocab_size, lowercase=not arguments.keep_case)
    print(f"wrote {path}: tokenizer.kind=sentencepiece tokenizer.path={path}")


def _device(name: str | None) -> str:
    import torch

    if name is not None and name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch sees no GPU; leave the option out or give cpu")
    return name or ("cuda" if torch.cuda.is_available() else "cpu")
