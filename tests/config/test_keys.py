"""Durations: every written form, what they mean in steps, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexiclip.config import Duration, parse_duration, to_steps
from flexiclip.errors import UserError

FORMS = {
    500: (500, "steps"),
    "500": (500, "steps"),
    "1 step": (1, "steps"),
    "20k steps": (20_000, "steps"),
    "1e3": (1000, "steps"),
    1e3: (1000, "steps"),
    "3 epochs": (3, "epochs"),
    "0.5ep": (0.5, "epochs"),
    "1 Epoch": (1, "epochs"),
    "2M samples": (2_000_000, "samples"),
    "2 m samples": (2_000_000, "samples"),
    "1.5B samples": (1_500_000_000, "samples"),
    "5%": (5, "percent"),
    " 2.5 percent ": (2.5, "percent"),
    "10 minutes": (10, "minutes"),
    "10m minutes": (10_000_000, "minutes"),
    "1 minute": (1, "minutes"),
    "3min": (3, "minutes"),
    ".5 min": (0.5, "minutes"),
    "30 TFLOPs": (30, "TFLOPs"),
    "250gflops": (0.25, "TFLOPs"),
    "1e3 EFLOPs": (1e9, "TFLOPs"),
    "2 pflops": (2000, "TFLOPs"),
    "3 ZFLOPs": (3e9, "TFLOPs"),
    "5k": (5000, "steps"),
    "1e15": (1e15, "steps"),
}


@pytest.mark.parametrize(("text", "expected"), FORMS.items())
def test_parse_duration_reads_every_form(text, expected):
    assert parse_duration(text) == Duration(*expected)


@pytest.mark.parametrize(
    "text", ["", "soon", "-5", "1.2.3", ".", "5 parsecs", "%", "5%%", "3 kk steps", True, None, "nan", float("inf")]
)
def test_parse_duration_refuses_what_is_no_duration(text):
    with pytest.raises(
        UserError, match=r"is not a duration: write 500, '3 epochs', '2M samples', '5%', '10 minutes' or '30 TFLOPs'"
    ):
        parse_duration(text)


@pytest.mark.parametrize("text", ["1.1e15", "2000000B samples", "1e400", "2e6 ZFLOPs"])
def test_a_duration_that_does_not_end(text):
    with pytest.raises(UserError, match="is too long: write a duration of at most 1e\\+15"):
        parse_duration(text)


@given(
    st.floats(0, 1e15, allow_nan=False),
    st.sampled_from(["steps", "epochs", "samples", "percent", "minutes", "TFLOPs"]),
)
def test_text_reads_back_to_the_same_duration(value, unit):
    duration = Duration(value, unit)
    assert parse_duration(str(duration)) == duration


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("7", 7),
        ("1000 samples", 4),  # 3.9 batches of 256
        ("1024 samples", 4),
        ("1 sample", 1),
        ("2 epochs", 79),  # 2 x 10,000 / 256 = 78.1
        ("5%", 10),
        ("0.1%", 1),
        ("100%", 200),
        ("1e-9 samples", 1),
        ("0", 0),
        ("0%", 0),
    ],
)
def test_to_steps_of_every_unit(text, steps):
    assert to_steps(parse_duration(text), batch=256, samples=10_000, total=200) == steps


def test_to_steps_is_not_rounded_up_by_float_error():
    assert 7 / 100 * 100 > 7
    assert to_steps(parse_duration("7%"), batch=1, total=100) == 7


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1 epoch", "the size of an epoch is unknown"),
        ("5%", "cannot be a percentage"),
        ("10 minutes", "only train.save_every takes a time"),
        ("3 TFLOPs", "only train.steps takes"),
    ],
)
def test_what_cannot_be_turned_into_steps_says_why(text, why):
    with pytest.raises(UserError, match=why):
        to_steps(parse_duration(text), batch=256)
