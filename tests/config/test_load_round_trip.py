"""What is dumped loads to an equal config: the promise behind run folders and model folders."""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, Literal

import flexiclip_recipes
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from flexiclip.config import Config, Duration, PatchStage, SourceConfig, dump, from_dict, load, to_dict
from flexiclip.config.load import parse_yaml, to_plain
from flexiclip.errors import UserError

RECIPES = sorted(Path(flexiclip_recipes.__file__).parent.glob("*.yaml"))
NUMBERS = st.floats(1e-8, 1e8)
TEXTS = st.text(st.characters(exclude_categories=("C",), exclude_characters="$"), min_size=1, max_size=12)
WORDS = st.sampled_from(
    ["1e-3", "1.5", "12", "yes", "null", "~", "2024-01-01", "a: b", "- x", "#", "0x1f", "1:30", "", "{a}", "'", "é"]
)
UNITS = st.sampled_from(["steps", "epochs", "samples", "percent", "minutes"])
REQUIRED = {SourceConfig: {"shards": "a.tar"}, PatchStage: {"start": Duration(5, "percent"), "seqhw": (5,)}}
PLAIN = {
    int: st.integers(1, 10**9),
    float: NUMBERS,
    bool: st.booleans(),
    str: TEXTS | WORDS,
    type(None): st.none(),
    Duration: st.builds(Duration, NUMBERS, UNITS),
    Any: st.integers(-(2**63), 2**63 - 1) | NUMBERS | TEXTS | WORDS | st.booleans(),
}


def values(hint: Any) -> st.SearchStrategy:
    """Any value that a field with this type may hold."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in PLAIN:
        return PLAIN[hint]
    if origin is Literal:
        return st.sampled_from(args)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(values(arg) for arg in args))
    if origin is tuple and args[-1] is Ellipsis:
        return st.lists(values(args[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*(values(arg) for arg in args))
    if origin is dict:
        return st.dictionaries(TEXTS | WORDS, values(args[1]), max_size=3)
    return sections(hint)


@st.composite
def sections(draw: st.DrawFn, cls: type) -> Any:
    """A section with some keys set. A key that breaks one of the section's own rules is left at its default."""
    hints = typing.get_type_hints(cls)
    section = cls(**REQUIRED.get(cls, {}))
    for name in draw(st.lists(st.sampled_from(list(hints)), unique=True, max_size=6)):
        try:
            section = dataclasses.replace(section, **{name: draw(values(hints[name]))})
        except UserError:
            continue
    return section


@settings(max_examples=150, deadline=None)
@given(sections(Config))
def test_any_config_reads_back_equal(config):
    text = dump(config)
    assert from_dict(Config, parse_yaml(text, "dump")) == config


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_dump_of_an_installed_recipe_loads_to_an_equal_config(recipe, monkeypatch, tmp_path):
    """Every recipe loads by its name, is valid, and survives the trip through a run folder's config.yaml."""
    monkeypatch.delenv("FLEXICLIP_DATA", raising=False)
    config = load(recipe.stem)
    (tmp_path / "config.yaml").write_text(dump(config), encoding="utf-8")
    assert load(tmp_path / "config.yaml") == config
    assert config.run_dir.endswith(recipe.stem)  # two recipes never share a run folder


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_installed_recipe_opens_with_its_launch_line(recipe):
    comments = [line for line in recipe.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert any(f"flexiclip train {recipe.stem}" in line for line in comments)


def test_dump_and_to_dict_give_plain_data_only():
    """Any YAML reader can read a model folder's config."""
    config = load("debug", ["data.train=[{shards: a.tar, weight: 2}]", "patch.stages=[{start: 50%, seqhw: [4]}]"])
    assert yaml.safe_load(dump(config))["data"]["train"] == [{"shards": "a.tar", "weight": 2.0}]
    assert to_dict(config)["patch"]["stages"] == [{"start": "50%", "seqhw": [4], "weights": "uniform"}]
    assert list(to_dict(config)) == [field.name for field in dataclasses.fields(Config)]


def test_dump_keeps_the_order_of_the_fields_and_every_letter():
    """A config.yaml reads like the schema, and names in any writing are not escaped."""
    text = dump(load("debug", ["run_dir=caf\u00e9/\u732b", "engine.deepspeed.b=1", "engine.deepspeed.a=2"]))
    keys = [line.split(":")[0] for line in text.splitlines() if line[0].isalpha()]
    assert keys == [field.name for field in dataclasses.fields(Config)]
    assert "run_dir: caf\u00e9/\u732b\n" in text
    assert text.index("    b: 1\n") < text.index("    a: 2\n")


def test_durations_keep_their_unit():
    assert to_plain(Duration(300, "steps")) == 300
    assert to_plain(Duration(2.5, "epochs")) == "2.5 epochs"
    assert to_plain(Duration(5, "percent")) == "5%"
