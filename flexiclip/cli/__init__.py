"""The composition root: reads the command line and joins the parts, each imported only by the command that needs it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from flexiclip.cli.data import add_data
from flexiclip.cli.export import add_export
from flexiclip.cli.parser import Parser, each_once, lengths, positive, widths
from flexiclip.errors import UserError
from flexiclip.files import write_whole, writing


def run(argv: Sequence[str]) -> int:
    """Run one command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int | None] = arguments.command
    return command(arguments) or 0


def _parser() -> argparse.ArgumentParser:
    from flexiclip import __version__

    parser = Parser(prog="flexiclip", description="Image-text models whose image tower works at every patch size.")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # DeepSpeed's launcher adds it; ranks.py reads the environment
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)

    def add(name: str, command: Callable[[argparse.Namespace], int | None], text: str) -> Parser:
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
    sub.add_argument("--seqhw", type=lengths, help="grid sides, for example 5,8,15; default: those of the training")
    sub.add_argument("--widths", type=widths, default=(), help="also score the first N columns of embeddings, for example 64,128")
    sub.add_argument("--output", type=Path, help="folder for results.json, results.csv, plots and report.html")
    sub.add_argument("--device", default=None, help="cpu or cuda; default: cuda where there is one")
    sub.add_argument("--batch-size", type=positive, default=128, help="images and captions a pass; default: 128")
    sub.add_argument("--workers", type=positive, default=2, help="threads that decode images")
    sub.add_argument("--embeddings", type=Path, help="folder that keeps embeddings, so that they are computed once")
    sub.add_argument(
        "--tolerance", type=float, default=1.0, help="accept lengths within so many points of the best; default: 1.0"
    )
    sub.add_argument("--budget", help="what an image may cost, '5 GFLOPs' or '20 ms': the best length within it is named")
    sub.add_argument("--cascade", help="SHORT:LONG, the lengths that rank and re-rank; default: the shortest and the longest")
    _add_analyze(add("analyze", _analyze, "look inside a model at several lengths: layers, attention, tokens, ensembles, cues"))
    sub = add("import", _import, "turn published weights into a model folder")
    sub.add_argument("source", help="a weight file, a Hugging Face folder, or open_clip's NAME/PRETRAINED (a tag or a file)")
    sub.add_argument("--format", required=True, help="big_vision, timm, open_clip, siglip or transformers")
    sub.add_argument("--output", type=Path, required=True, help="the model folder to write")
    sub.add_argument("--text", type=Path, help="the text tower's sentencepiece model, where the source holds no tokenizer")
    sub.add_argument("--arch", help="timm's or open_clip's name of the architecture, where the file's shapes do not say")
    sub.add_argument("--heads", type=positive, help="of the image tower; default: width/64, or as published")
    sub.add_argument("--image-size", type=positive, help="pixels; default: what kernel and grid cover")
    add_export(commands)
    add_data(commands)
    _add_plan(add("plan", _plan, "what a recipe needs of a cluster: memory, traffic, images/s and hours"))
    return parser


def _add_analyze(sub: Parser) -> None:
    sub.add_argument("model", help="a model folder, a run folder, another library's folder; A+pi flexes A")
    sub.add_argument("--suite", action="append", required=True, help="the name of an installed suite or a file; may be repeated")
    sub.add_argument("--output", type=Path, required=True, help="folder for analysis.json, plots and report.html")
    sub.add_argument("--seqhw", type=lengths, help="grid sides, for example 5,8,15; default: those of the training")
    sub.add_argument("--only", type=lambda text: text.split(","), help="of cka,attention,tokens,ensembles,cue-conflict")
    sub.add_argument("--cue-conflict", type=Path, help="folder of SHAPE/SHAPE1-TEXTURE2.png, as Geirhos's")
    sub.add_argument("--images", type=positive, default=256, help="drawn from the suite for all but ensembles; default: 256")
    sub.add_argument("--maps", type=positive, default=6, help="of them, how many are shown with their maps; default: 6")
    sub.add_argument("--batch-size", type=positive, default=64, help="images a pass, and CKA's minibatch; default: 64")
    sub.add_argument("--workers", type=positive, default=2, help="threads that decode images")
    sub.add_argument("--device", default=None, help="cpu or cuda; default: cuda where there is one")


def _add_plan(sub: Parser) -> None:
    sub.add_argument("recipe", help="a YAML file, or the name of an installed recipe")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="dotted.key=value, for example engine.zero_stage=3")
    sub.add_argument("--nodes", type=positive, default=1)
    sub.add_argument("--gpus-per-node", type=positive, default=1, help="ranks of a node; with --device cpu they share it")
    sub.add_argument("--device", required=True, help="h100, a100 or cpu; a CPU's speed is measured here")
    sub.add_argument("--mfu", type=float, help="share of the peak FLOP/s that training reaches; default: 0.4, for cpu 0.6")
    sub.add_argument("--samples", help="training pairs of an epoch, for example 400M, where train.steps is in epochs")
    sub.add_argument(
        "--json", type=Path, nargs="?", const=Path("-"), help="write all figures to this file; without one, print them"
    )


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
        with writing(f"--json {arguments.json}"):
            write_whole(arguments.json, text)
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
            each_once("--suite", arguments.suite),
            seqhw=arguments.seqhw,
            device=_device(arguments.device),
            batch_size=arguments.batch_size,
            output=arguments.output,
            workers=arguments.workers,
            embeddings=arguments.embeddings,
            tolerance=arguments.tolerance,
            budget=parse_budget(arguments.budget) if arguments.budget is not None else None,
            cascade=parse_cascade(arguments.cascade) if arguments.cascade is not None else None,
            widths=arguments.widths,
        )


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
        device=_device(arguments.device),
    )
    analyze(arguments.model, each_once("--suite", arguments.suite), arguments.output, options)


def _import(arguments: argparse.Namespace) -> None:
    from flexiclip.imports import ImportOptions, import_weights

    options = ImportOptions(arguments.arch, arguments.text, arguments.heads, arguments.image_size)
    for line in import_weights(arguments.source, arguments.format, arguments.output, options):
        print(line)


def _device(name: str | None) -> str:
    """The device of that name, by default a GPU where there is one. UserError where torch has none such."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch sees no GPU; leave the option out or give cpu")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:  # no such name, no such number, or a torch built without it
        raise UserError(f"--device {name}: torch has none such ({str(error).splitlines()[0]}); give cpu or cuda") from None
    return name
