"""The command line: reads the arguments and calls the parts. A part is imported only by the command that needs it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from flexiclip import commands
from flexiclip.cli.data import add_data
from flexiclip.cli.export import add_export
from flexiclip.cli.parser import Command, Parser, add_command, each_once, lengths, positive, widths
from flexiclip.errors import UserError
from flexiclip.files import write_whole, writing
from flexiclip.libraries import plain_logs


def run(argv: Sequence[str]) -> int:
    """Run one command; returns its exit code."""
    plain_logs()
    arguments = _parser().parse_args(argv)
    command: Command = arguments.command
    return command(arguments) or 0


def _parser() -> argparse.ArgumentParser:
    from flexiclip import __version__

    parser = Parser(
        prog="flexiclip",
        description="Train, evaluate and export image-text models whose image tower works at every patch size.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # DeepSpeed's launcher adds it; ranks.py reads the environment
    group = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)

    add = partial(add_command, group)
    _add_recipe(add("train", _train, "train a model from a recipe"), "train.steps=20")
    _add_recipe(add("show-config", _show_config, "print a recipe with the value of every key"), "train.steps=20")
    sub = add("explain", _explain, "explain the keys of a recipe")
    sub.add_argument(
        "key", nargs="?", default="", help="a key such as train.steps, or a section such as patch; none: an overview"
    )
    sub.add_argument("--recipe", help="also show the values in this recipe, a YAML file or an installed name")
    _add_eval(add("eval", _eval, "score models on suites, at every sequence length"))
    _add_compare(add("compare", _compare, "compare finished evaluations in one picture and one report"))
    _add_analyze(add("analyze", _analyze, "look inside a model at several lengths: layers, attention, tokens, ensembles, cues"))
    _add_import(add("import", _import, "turn published weights into a model folder"))
    add_export(group)
    add_data(group)
    _add_plan(add("plan", _plan, "predict what a recipe needs on a cluster: memory, traffic, images/s and hours"))
    return parser


def _add_recipe(sub: Parser, example: str) -> None:
    sub.add_argument("recipe", help="a YAML file, or the name of an installed recipe")
    sub.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help=f"set a key of the recipe, for example {example}"
    )


def _add_suites(sub: Parser) -> None:
    """Add the options that `eval` and `analyze` have in common."""
    sub.add_argument(
        "--suite",
        action="append",
        required=True,
        help="the name of an installed suite, a YAML file, a folder of images or a table of images (.csv, .tsv); may be given "
        "several times",
    )
    sub.add_argument("--seqhw", type=lengths, help="grid sides, for example 5,8,15; default: the lengths that were trained")
    sub.add_argument("--device", default=None, help="cpu or cuda; default: cuda if there is a GPU")
    sub.add_argument("--workers", type=positive, default=2, help="threads that decode images; default: 2")


def _add_eval(sub: Parser) -> None:
    sub.add_argument(
        "model",
        nargs="+",
        help="model or run folders, open_clip:NAME[/PRETRAINED], or other libraries' models; MODEL+pi makes a plain ViT "
        "flexible, and LABEL=MODEL names a model in tables and plots",
    )
    _add_suites(sub)
    sub.add_argument(
        "--widths", type=widths, default=(), help="also score the first N columns of the embeddings, for example 64,128"
    )
    sub.add_argument("--output", type=Path, help="folder for results.json, results.csv, plots and report.html")
    _add_table(sub)
    sub.add_argument(
        "--batch-size", type=positive, default=128, help="images and captions encoded at once per rank; default: 128"
    )
    sub.add_argument("--embeddings", type=Path, help="folder that keeps the embeddings, so that they are computed only once")
    sub.add_argument(
        "--tolerance", type=float, default=1.0, help="accept lengths within this many points of the best; default: 1.0"
    )
    sub.add_argument("--budget", help="name the best length at which an image costs at most this: '5 GFLOPs' or '20 ms'")
    sub.add_argument(
        "--cascade", help="SHORT:LONG, the lengths that rank and re-rank images; default: the shortest and the longest"
    )


def _add_table(sub: Parser) -> None:
    sub.add_argument(
        "--table",
        type=lambda text: text.split(","),
        default=(),
        help="also write the tables: FILE.md (Markdown), FILE.tex (LaTeX), or markdown or latex for results.md or results.tex in "
        "the output folder; several are separated by commas",
    )


def _add_compare(sub: Parser) -> None:
    sub.add_argument(
        "runs",
        nargs="+",
        metavar="RESULTS",
        help="results.json files that flexiclip eval has written, or the folders that hold them; LABEL=RESULTS gives one a name",
    )
    sub.add_argument("--metric", help="the metric to draw, for example acc1; default: the one that represents each task")
    sub.add_argument("--dataset", help="compare only this data set")
    sub.add_argument(
        "--output", type=Path, required=True, help="folder for a picture and a report, or a picture: .png, .svg or .pdf"
    )
    _add_table(sub)


def _add_analyze(sub: Parser) -> None:
    sub.add_argument(
        "model", help="a model folder, a run folder or a folder of another library; MODEL+pi makes a plain ViT flexible"
    )
    _add_suites(sub)
    sub.add_argument("--output", type=Path, required=True, help="folder for analysis.json, plots and report.html")
    sub.add_argument(
        "--only",
        type=lambda text: text.split(","),
        help="run only some of cka,attention,tokens,ensembles,cue-conflict; default: all that have their data",
    )
    sub.add_argument(
        "--cue-conflict", type=Path, help="folder of SHAPE/SHAPE1-TEXTURE2.png images, named as in the set of Geirhos et al."
    )
    sub.add_argument(
        "--images", type=positive, default=256, help="images drawn from the suites, for all but the ensembles; default: 256"
    )
    sub.add_argument("--maps", type=positive, default=6, help="how many of these are shown with their maps; default: 6")
    sub.add_argument(
        "--batch-size", type=positive, default=64, help="images encoded at once, which are also CKA's minibatch; default: 64"
    )


def _add_import(sub: Parser) -> None:
    sub.add_argument(
        "source", help="a weight file, a Hugging Face folder, or open_clip's NAME/PRETRAINED (PRETRAINED is a tag or a file)"
    )
    sub.add_argument("--format", required=True, help="big_vision, timm, open_clip, siglip or transformers")
    sub.add_argument("--output", type=Path, required=True, help="the model folder to write")
    sub.add_argument("--text", type=Path, help="sentencepiece model of the text tower, if the source has no tokenizer")
    sub.add_argument(
        "--arch", help="name of the architecture in timm or open_clip, if the shapes of the weights do not determine it"
    )
    sub.add_argument("--heads", type=positive, help="attention heads of the image tower; default: as published, or width / 64")
    sub.add_argument("--image-size", type=positive, help="side of the images in pixels; default: what kernel and grid cover")


def _add_plan(sub: Parser) -> None:
    _add_recipe(sub, "engine.zero_stage=3")
    sub.add_argument("--nodes", type=positive, default=1, help="number of machines; default: 1")
    sub.add_argument(
        "--gpus-per-node", type=positive, default=1, help="ranks per machine, which share it with --device cpu; default: 1"
    )
    sub.add_argument("--device", required=True, help="h100, a100 or cpu; a CPU's speed is measured on this machine")
    sub.add_argument("--mfu", type=float, help="share of the peak FLOP/s that training reaches; default: 0.4, or 0.6 on a cpu")
    sub.add_argument("--samples", help="training pairs per epoch, for example 400M; needed if train.steps is in epochs")
    sub.add_argument(
        "--json",
        type=Path,
        nargs="?",
        const=Path("-"),
        help="also write all figures to this file; without a name, only print them",
    )


def _train(arguments: argparse.Namespace) -> int:
    """Train. A run that a signal stops is saved; its exit code is FLEXICLIP_STOPPED_CODE, or 0 without that variable."""
    stopped = os.environ.get("FLEXICLIP_STOPPED_CODE", "0")
    if not stopped.isdecimal() or int(stopped) > 255:
        raise UserError(f"FLEXICLIP_STOPPED_CODE={stopped} must be an exit code, 0 to 255")
    return 0 if commands.train(arguments.recipe, arguments.overrides).complete else int(stopped)


def _plan(arguments: argparse.Namespace) -> None:
    import json

    from flexiclip.plan.plan import Cluster, make_plan
    from flexiclip.plan.table import show

    cluster = Cluster(arguments.nodes, arguments.gpus_per_node, arguments.device, arguments.mfu)
    plan = make_plan(commands.load_recipe(arguments.recipe, arguments.overrides), cluster, _samples(arguments.samples))
    if arguments.json is not None:
        text = json.dumps(plan.to_dict(), indent=2) + "\n"
        if str(arguments.json) == "-":
            print(text, end="")
            return
        with writing(f"--json {arguments.json}"):
            write_whole(arguments.json, text)
    show(plan)


def _samples(text: str | None) -> int | None:
    """Parse a number of pairs, written as in a duration: 400M, or 400M samples."""
    from flexiclip.config import parse_duration

    if text is None:
        return None
    duration = parse_duration(text)
    if duration.unit not in ("steps", "samples") or duration.value < 1:  # a bare number is read as steps
        raise UserError(f"--samples {text}: give a number of pairs, for example 400M")
    return int(duration.value)


def _show_config(arguments: argparse.Namespace) -> None:
    from flexiclip.config import dump

    print(dump(commands.load_recipe(arguments.recipe, arguments.overrides)), end="")


def _explain(arguments: argparse.Namespace) -> None:
    from flexiclip.config.explain import explain

    print(explain(arguments.key, None if arguments.recipe is None else commands.load_recipe(arguments.recipe)), end="")


def _eval(arguments: argparse.Namespace) -> None:
    from flexiclip_eval import EvalOptions
    from flexiclip_eval.tradeoffs import parse_budget, parse_cascade

    options = EvalOptions(
        device=commands.device_of(arguments.device),
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        embeddings=arguments.embeddings,
        widths=arguments.widths,
        cascade=parse_cascade(arguments.cascade) if arguments.cascade is not None else None,
        tolerance=arguments.tolerance,
        budget=parse_budget(arguments.budget) if arguments.budget is not None else None,
        tables=tuple(each_once("--table", arguments.table)),
    )
    commands.score(arguments.model, each_once("--suite", arguments.suite), arguments.seqhw, arguments.output, options)


def _compare(arguments: argparse.Namespace) -> None:
    from flexiclip_eval.report.compare import compare

    tables = tuple(each_once("--table", arguments.table))
    for line in compare(arguments.runs, arguments.output, arguments.metric, arguments.dataset, tables):
        print(line)


def _analyze(arguments: argparse.Namespace) -> None:
    from flexiclip_eval.analysis.run import AnalysisOptions, analyze

    options = AnalysisOptions(
        seqhw=arguments.seqhw,
        only=arguments.only,
        cue_conflict=arguments.cue_conflict,
        images=arguments.images,
        maps=arguments.maps,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        device=commands.device_of(arguments.device),
    )
    analyze(arguments.model, each_once("--suite", arguments.suite), arguments.output, options)


def _import(arguments: argparse.Namespace) -> None:
    from flexiclip.formats.run import ImportOptions, import_weights

    options = ImportOptions(arguments.arch, arguments.text, arguments.heads, arguments.image_size)
    for line in import_weights(arguments.source, arguments.format, arguments.output, options):
        print(line)
