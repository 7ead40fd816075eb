"""What `flexiclip explain` says of each key, against the schema's own types, values and classes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import flexiclip_recipes
import pytest
import yaml

from flexiclip.__main__ import main
from flexiclip.config import Config, from_dict, load, to_dict
from flexiclip.config.explain import REQUIRED, KeyDoc, changeable, explain, keys, sections
from flexiclip.errors import UserError

DOCS = {doc.key: doc for doc in keys()}
TOP = [name for name in sections() if "." not in name]
ITEMS = ["data.train[].shards", "data.train[].weight", "patch.stages[].start", "patch.stages[].seqhw", "patch.stages[].weights"]
RECIPES = sorted(Path(flexiclip_recipes.__file__).parent.glob("*.yaml"))


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are as wide as they may be, whatever terminal the tests run in."""
    monkeypatch.setenv("COLUMNS", "100")


def unknown(text: str) -> list[str]:
    """The dotted keys that a text names and that do not exist."""
    found = re.findall(rf"(?<![\w./-])(?:{'|'.join(TOP)})\.[a-z_.]*[a-z_]", text)
    return [name for name in found if name not in DOCS and name not in sections()]


def flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value. An empty mapping is a value."""
    if not isinstance(data, dict) or not data:
        return {prefix: data}
    return {name: v for key, value in data.items() for name, v in flat(value, f"{prefix}.{key}".lstrip(".")).items()}


DEFAULTS = flat(to_dict(Config()))


def test_keys_are_those_of_a_whole_recipe_in_its_order() -> None:
    assert [key for key in DOCS if key not in ITEMS] == list(DEFAULTS)
    assert [key for key in DOCS if key in ITEMS] == ITEMS
    order = list(DOCS)
    for item in ITEMS:
        assert order.index(item.partition("[")[0]) < order.index(item) < order.index(item.partition("[")[0]) + 4
    assert len(DOCS) == len(keys())


@pytest.mark.parametrize("key", DEFAULTS)
def test_the_default_of_a_key_reads_as_the_value_that_it_has(key: str) -> None:
    """As a recipe's text, alone in a file with the other keys left out."""
    assert yaml.safe_load(DOCS[key].default) == DEFAULTS[key]
    section: dict[str, Any] = {}
    recipe = section
    *above, last = key.split(".")
    for name in above:
        section = section.setdefault(name, {})
    section[last] = yaml.safe_load(DOCS[key].default)
    assert from_dict(Config, recipe) == Config()


def test_keys_of_items_have_the_defaults_of_an_item() -> None:
    assert {key: DOCS[key].default for key in ITEMS} == {
        "data.train[].shards": REQUIRED,
        "data.train[].weight": "1.0",
        "patch.stages[].start": REQUIRED,
        "patch.stages[].seqhw": REQUIRED,
        "patch.stages[].weights": "uniform",
    }


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("seed", "integer"),
        ("optimizer.lr", "number"),
        ("data.flip", "true or false"),
        ("run_dir", "text"),
        ("train.steps", "duration"),
        ("train.keep_every", "duration or null"),
        ("model.image.width", "integer or null"),
        ("model.image.image_size", "integer or [integer, integer]"),
        ("model.image.default_seqhw", "integer or [integer, integer] or null"),
        ("model.preprocess.mean", "[number, number, number]"),
        ("model.classes", "integer or text or list of texts or null"),
        ("engine.zero_stage", "0, 1, 2 or 3"),
        ("engine.deepspeed", "mapping"),
        ("loss.kind", "softmax or sigmoid"),
        ("data.train", "text or list of (text or {shards, weight})"),
        ("data.train[].shards", "text or list of texts"),
        ("patch.stages", "list of {start, seqhw, weights}"),
        ("patch.weights", "text or list of numbers"),
    ],
)
def test_types_are_in_words(key: str, words: str) -> None:
    assert DOCS[key].type == words


@pytest.mark.parametrize("name", [*DOCS, *sections()])
def test_every_key_and_section_has_a_description(name: str) -> None:
    """A few sentences, and the keys that they name exist."""
    description = DOCS[name].description if name in DOCS else sections()[name]
    assert re.fullmatch(r"[A-Z].*\.", description), "a sentence"
    assert 10 < len(description) <= 300
    assert unknown(description) == []


@pytest.mark.parametrize("key", [key for key, doc in DOCS.items() if doc.type.endswith(" or null")])
def test_the_description_of_an_optional_key_says_what_null_means(key: str) -> None:
    assert re.search(r"\bnull: ", DOCS[key].description), key


def test_sections_are_those_of_the_config_classes() -> None:
    inside = {name for key in DEFAULTS for name in ([key.rpartition(".")[0]] if "." in key else [])}
    above = {name.rpartition(".")[0] for name in inside if "." in name}
    assert set(sections()) == inside | above


def test_changeable_names_sections_as_a_whole() -> None:
    assert {"run_dir", "engine", "eval", "train.steps"} <= set(changeable())
    free = {key for key, doc in DOCS.items() if doc.resume}
    assert free == {key for key in DOCS if key in changeable() or key.startswith(("engine.", "eval."))}


def test_explain_shows_one_key_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "train.log_every"]) == 0
    assert capsys.readouterr().out == (
        "train.log_every\n"
        "  How often metrics are logged: steps, epochs, samples or a percentage of the run.\n"
        "  type:      duration\n"
        "  default:   10\n"
        "  on resume: may change\n"
    )
    assert main(["explain", "train.log_every", "--recipe", "debug"]) == 0
    assert capsys.readouterr().out.endswith("  default:   10\n  on resume: may change\n  in recipe: 1\n")


def shown(text: str) -> list[str]:
    """The keys that a text explains."""
    return [block.splitlines()[0] for block in text.split("\n\n") if "\n  type:" in block]


def test_explain_lists_the_keys_of_a_section() -> None:
    text = explain("patch")
    assert " ".join(text.split("\n\n")[0].split()) == f"patch: {sections()['patch']}"
    assert shown(text) == [key for key in DOCS if key.startswith("patch.")]
    assert shown(explain("model.image")) == [key for key in DOCS if key.startswith("model.image.")]
    assert shown(explain("data.train")) == ["data.train", *ITEMS[:2]]
    assert shown(explain("patch.stages")) == ["patch.stages", *ITEMS[2:]]
    for name in ("patch.stages[].start", "patch.stages[0].start", "patch.stages.start"):
        assert shown(explain(name)) == ["patch.stages[].start"]
    assert shown(explain("train.steps")) == ["train.steps"], "no key that only begins alike"


def test_explain_without_a_key_is_an_overview(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain"]) == 0
    text = capsys.readouterr().out
    assert [line.split()[0] for line in text.split("\n\n")[0].splitlines() if line[0] != " "] == list(to_dict(Config()))
    assert "flexiclip explain SECTION" in text
    assert max(map(len, text.splitlines())) <= 100


def test_explain_shows_the_values_of_a_recipe() -> None:
    config = load("openmoji_classify")
    text = "\n" + explain("", config)
    assert shown(text.strip()) == list(DOCS)
    for key, value in (
        ("model.image.image_size", "60"),
        ("patch.seqhw", "[3, 4, 5, 6, 10, 12, 15]"),
        ("model.text.pool", "its section is null"),
        ("train.save_every", "10%"),
        ("data.labels", "'json:category'"),
    ):
        block = text.split(f"\n{key}\n")[1].split("\n\n")[0]
        assert block.splitlines()[-1] == f"  in recipe: {value}"


def test_explain_keeps_to_the_width_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    assert max(map(len, explain().splitlines())) <= 50
    monkeypatch.setenv("COLUMNS", "1000")
    assert max(map(len, explain("model").splitlines())) <= 100


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("train.stepps", "unknown key 'train.stepps': did you mean train.steps?"),
        ("steps", "unknown key 'steps': did you mean train.steps?"),
        ("stepps", "unknown key 'stepps': did you mean train.steps?"),
        ("lock", "unknown key 'lock': did you mean model.image.lock or model.text.lock?"),
        ("modle", "unknown key 'modle': did you mean model?"),
        ("modle.image", "unknown key 'modle.image': did you mean model?"),
        ("train.steps.x", "unknown key 'train.steps.x': train.steps is a key, not a section"),
        ("loss.xyz", "unknown key 'loss.xyz': the keys of loss are kind, mask_identical, widths"),
        ("qqq", f"unknown key 'qqq': the keys are {', '.join(to_dict(Config()))}"),
        ("x" * 5000, f"unknown key '{'x' * 100}': the keys are {', '.join(to_dict(Config()))}"),
    ],
)
def test_an_unknown_key_is_one_line_with_the_nearest(name: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", name]) == 2
    assert capsys.readouterr() == ("", f"flexiclip: {line}\n")
    with pytest.raises(UserError, match=r"no recipe 'nonesuch'"):
        load("nonesuch")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_describes_no_key(recipe: Path) -> None:
    """Its only comment is the header: what the recipe is, and why it has these values. What a key means is written in the schema
    alone, so that the two cannot disagree. The keys that the header names exist.
    """
    lines = recipe.read_text(encoding="utf-8").splitlines()
    header = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    assert header > 0
    assert [line for line in lines[header:] if "#" in line] == []
    assert unknown("\n".join(lines)) == []


def test_a_key_doc_is_plain_data() -> None:
    assert DOCS["loss.kind"] == KeyDoc(
        "loss.kind",
        "softmax or sigmoid",
        "softmax",
        "CLIP's cross-entropy over the batch (softmax), or SigLIP's decision for each pair (sigmoid).",
        False,
    )
