"""What the command line hands on: each option reaches the part that it is for, and the help says the defaults that there are."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flexiclip_eval
import flexiclip_eval.analysis.run
import flexiclip_eval.report.compare
import pytest

from flexiclip import cli
from flexiclip.__main__ import main
from flexiclip.cli.parser import lengths, positive, widths
from flexiclip.config import Config


def parsers(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """(command, its parser) of every command."""
    yield name.strip(), parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, sub in action.choices.items():
                yield from parsers(sub, f"{name} {word}")


COMMANDS = dict(parsers(cli._parser()))
LEAVES = {name: parser for name, parser in COMMANDS.items() if parser.get_default("command")}


def test_every_command_is_here() -> None:
    assert set(LEAVES) == {
        *("train", "show-config", "explain", "eval", "compare", "analyze", "import", "plan"),
        *("export image", "export text", "export model"),
        *(f"data {name}" for name in ("openmoji", "noto", "fluent", "cue-conflict", "index", "check", "pack", "tokenizer")),
    }


@pytest.mark.parametrize("name", LEAVES)
def test_help_says_the_defaults_that_there_are(name: str) -> None:
    """`default: 128` in the help of an option is its default, and an option with a plain default says it."""
    for action in LEAVES[name]._actions:
        said = re.search(r"default: ([\w.,-]+)$", action.help or "")
        if said and action.default is not None and action.default != []:
            assert str(action.default) == said[1], action.dest
        if isinstance(action.default, (int, float, str)) and not isinstance(action.default, bool) and action.help:
            told = said is not None or action.dest in ("help", "key")
            assert told or action.default == argparse.SUPPRESS, action.dest


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_and_wants_its_arguments(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([*name.split(), "--help"])
    assert left.value.code == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"usage: flexiclip {name}".rstrip())
    assert err == ""
    if name == "explain":  # without a key, it gives an overview
        return
    assert main(name.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(rf"flexiclip: the following arguments are required: .*; see flexiclip {name}.*--help\n", err)


@pytest.mark.parametrize("name", LEAVES)
def test_an_option_is_given_once(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """All but --suite and --template, which may be repeated with another value."""
    for action in LEAVES[name]._actions:
        repeated = isinstance(action, argparse._AppendAction)
        if action.option_strings and action.nargs != 0 and action.dest != "suite" and not repeated:
            option = action.option_strings[-1]
            value = next(iter(action.choices or ["3"]))
            assert main([*name.split(), f"{option}={value}", f"{option}={value}"]) == 2
            assert f"flexiclip: {option} is given twice" in capsys.readouterr().err


@pytest.mark.parametrize("name", LEAVES)
def test_options_refuse_what_is_not_a_whole_number_above_0(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Options that count something take whole numbers above 0; lists of lengths and columns too."""
    for action in LEAVES[name]._actions:
        if action.type in (positive, lengths, widths):
            for value in ("0", "-1", "x", "1.5", "", "1e3", "٣²", "9" * 5000):
                assert main([*name.split(), f"{action.option_strings[0]}={value}"]) == 2, (action.dest, value)
                (line,) = capsys.readouterr().err.splitlines()
                assert f"{action.option_strings[0]}: " in line


def recorded(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The calls of a function that does nothing now."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    monkeypatch.setattr(module, name, lambda *arguments, **named: calls.append((arguments, named)) or [])
    return calls


def test_eval_hands_every_option_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch, flexiclip_eval, "evaluate_suites")
    given = "eval a b --suite s --suite t --seqhw 5,8 --widths 64,128 --output o --device cpu --batch-size 7 --workers 3 "
    assert main([*(given + "--embeddings e --tolerance 2.5 --cascade 5:8 --table a.md,latex").split(), "--budget", "20 ms"]) == 0
    (((models, suites), named),) = calls
    assert (models, suites) == (["a", "b"], ["s", "t"])
    options = named.pop("options")
    assert (options.budget.limit, options.budget.unit) == (20, "ms")
    assert options == flexiclip_eval.EvalOptions(
        device="cpu", batch_size=7, workers=3, embeddings=Path("e"), widths=[64, 128], cascade=(5, 8), tolerance=2.5,
        budget=options.budget, tables=("a.md", "latex"),
    )  # fmt: skip
    assert named == {"seqhw": [5, 8], "output": Path("o")}
    assert main(["eval", "a", "--suite", "s", "--device", "cpu"]) == 0
    assert calls[1][1] == {"seqhw": None, "output": None, "options": flexiclip_eval.EvalOptions()}
    assert dataclasses.asdict(flexiclip_eval.EvalOptions()) == {
        "device": "cpu",
        "batch_size": 128,
        "workers": 2,
        "embeddings": None,
        "widths": (),
        "cascade": None,
        "tolerance": 1.0,
        "budget": None,
        "command": None,
        "tables": (),
    }


def test_compare_hands_every_option_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch, flexiclip_eval.report.compare, "compare")
    assert main(["compare", "a", "b=c", "--output", "o", "--metric", "acc1", "--dataset", "d", "--table", "t.tex"]) == 0
    assert main(["compare", "a", "--output", "o.png"]) == 0
    assert [arguments for arguments, _ in calls] == [
        (["a", "b=c"], Path("o"), "acc1", "d", ("t.tex",)),
        (["a"], Path("o.png"), None, None, ()),
    ]


def test_analyze_hands_every_option_on(monkeypatch: pytest.MonkeyPatch) -> None:
    run = flexiclip_eval.analysis.run
    calls = recorded(monkeypatch, run, "analyze")
    given = "analyze a --suite s --suite t --output o --seqhw 5,8 --only cka,tokens --cue-conflict c --images 9 --maps 4 "
    assert main((given + "--batch-size 7 --workers 3 --device cpu").split()) == 0
    ((arguments, _),) = calls
    options = run.AnalysisOptions(
        seqhw=[5, 8], only=["cka", "tokens"], cue_conflict=Path("c"), images=9, maps=4, batch_size=7, workers=3, device="cpu"
    )
    assert arguments == ("a", ["s", "t"], Path("o"), options)


def test_plan_hands_every_option_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from flexiclip.plan import plan, table

    calls = recorded(monkeypatch, plan, "make_plan")
    shown = recorded(monkeypatch, table, "show")
    given = "plan debug seed=4 --nodes 2 --gpus-per-node 8 --device h100 --mfu 0.3 --samples"
    for text, samples in (("400M", 400_000_000), ("1.5k samples", 1500)):
        assert main([*given.split(), text]) == 0
        (config, cluster, number), _ = calls.pop()
        assert (config.seed, cluster, number) == (4, plan.Cluster(2, 8, "h100", 0.3), samples)
    assert len(shown) == 2
    for text in ("3 epochs", "5%", "0", "0.5", "x", "10 minutes"):
        assert main([*given.split(), text]) == 2


@pytest.mark.parametrize(("stopped", "code"), [(True, 75), (False, 0)])
def test_a_stopped_run_gives_the_code_that_is_asked_for(stopped: bool, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from flexiclip.train import trainer as loop

    seen: list[Config] = []
    monkeypatch.setattr(loop, "train", lambda config, evaluators, **_: seen.append(config) or not stopped)
    monkeypatch.setenv("FLEXICLIP_STOPPED_CODE", "75")
    assert main(["train", "debug", "seed=9"]) == code
    monkeypatch.delenv("FLEXICLIP_STOPPED_CODE")
    assert main(["train", "debug"]) == 0
    assert [config.seed for config in seen] == [9, 0]
