"""YAML within bounds: a key that is given twice is refused with both lines. Bombs are in test_untrusted_data.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from flexiclip.config import load
from flexiclip.config.yaml_text import read_value, read_yaml
from flexiclip.errors import UserError

TWICE = {
    "a: 1\nb: 2\na: 3\n": ("a", "lines 1 and 3"),
    "train:\n  steps: 1\n  seed: 2\n\n  steps: 1\n": ("train.steps", "lines 2 and 5"),
    "train: {steps: 1, steps: 2}\n": ("train.steps", "line 1"),
    "train: {steps: 1,\n  'steps': 2}\n": ("train.steps", "lines 1 and 2"),
    "a:\n  - {b: 1}\n  - b: 1\n    c: 2\n    b: 2\n": ("a.b", "lines 3 and 5"),
    "a: {b: {c: {d: [[{e: 1,\ne: 2}]]}}}\n": ("a.b.c.d.e", "lines 1 and 2"),
    "1: a\n0x1: b\n": ("0x1", "lines 1 and 2"),
    "~: a\nnull: b\n": ("null", "lines 1 and 2"),
    "a: &x {b: 1}\nc:\n  <<: *x\n  <<: *x\n": ("c.<<", "lines 3 and 4"),
    "? a\n: 1\n? a\n: 2\n": ("a", "lines 1 and 3"),
    "? [{a: 1, a: 2}]\n: 1\n": ("a", "line 1"),
    '{"a": 1, "\\u0061": 2}': ("a", "line 1"),
}


@pytest.mark.parametrize(("text", "said"), TWICE.items())
def test_read_yaml_refuses_a_key_that_is_given_twice(text: str, said: tuple[str, str]) -> None:
    with pytest.raises(UserError) as caught:
        read_yaml(text, "r.yaml")
    assert str(caught.value).startswith(f"r.yaml: the key {said[0]!r} is given twice, in {said[1]}: ")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: {x: 1}\nb: {x: 1}\n", {"a": {"x": 1}, "b": {"x": 1}}),
        ("- x: 1\n- x: 1\n", [{"x": 1}, {"x": 1}]),
        ("a: &m {x: 1, y: 2}\nb: {<<: *m, x: 3}\n", {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}}),
        ("a: {b: {c: &m {x: 1, y: 2}}}\nd: {<<: *m, x: 3}\n", {"a": {"b": {"c": {"x": 1, "y": 2}}}, "d": {"x": 3, "y": 2}}),
        (
            "a: {b: {c: &m {<<: {z: 0, x: 9}, x: 1}}}\nd: {<<: *m, x: 3}\n",
            {"a": {"b": {"c": {"x": 1, "z": 0}}}, "d": {"x": 3, "z": 0}},
        ),
        ("1: a\n'1': b\n", {1: "a", "1": "b"}),
        ("'<<': 1\nA: 2\na: 3\n", {"<<": 1, "A": 2, "a": 3}),
        ("- 1\n", [1]),
        ("", None),
    ],
)
def test_read_yaml_takes_what_is_not_twice(text: str, value: object) -> None:
    """What an alias merges may be overwritten, however the nodes are constructed."""
    assert read_yaml(text, "r.yaml") == value


def test_every_file_of_the_same_reader_refuses_it(tmp_path: Path) -> None:
    """A recipe, the one that its `base` names, and a section that an override gives."""
    (tmp_path / "base.yaml").write_text("seed: 1\ntrain: {}\nseed: 2\n")
    (tmp_path / "r.yaml").write_text("base: base\n")
    with pytest.raises(UserError, match=r"base.yaml: the key 'seed' is given twice, in lines 1 and 3"):
        load(tmp_path / "r.yaml")
    with pytest.raises(UserError, match=r"override optimizer: the key 'lr' is given twice, in line 1"):
        load("debug", ["optimizer={lr: 1, lr: 2}"])
    (tmp_path / "b.yaml").write_text("base: debug\nseed: 1\nbase: flexiclip_b\n")
    with pytest.raises(UserError, match=r"the key 'base' is given twice, in lines 1 and 3"):
        load(tmp_path / "b.yaml")


def test_read_value_keeps_every_character() -> None:
    """`#`, control characters and bytes that are no text, in keys and values of any depth; errors show them as they were."""
    assert read_value("{a #: [b # c, {'#': '#'}]}", "o") == {"a #": ["b # c", {"#": "#"}]}
    assert read_value("\x00\x1b\udc80 #", "o") == "\x00\x1b\udc80 #"
    assert read_value('"a \\x23"', "o") == "a #"
    assert (read_value("5", "o"), read_value("", "o"), read_value("~", "o")) == (5, None, None)
    with pytest.raises(UserError, match=r"^o: not YAML: .* \[a #"):
        read_value("[a #", "o")
