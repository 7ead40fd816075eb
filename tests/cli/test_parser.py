"""The values of options that are lists: lengths, widths, and each item once."""

from __future__ import annotations

import pytest

from flexiclip.cli.parser import each_once, lengths, positive, widths
from flexiclip.errors import UserError


def test_lengths_widths_and_positive_read_numbers() -> None:
    assert (lengths("5"), lengths("5,8,15"), widths("64,128"), positive("7")) == ([5], [5, 8, 15], [64, 128], 7)


def test_each_once_refuses_an_item_that_is_given_twice() -> None:
    assert each_once("--suite", ["a", "b"]) == ["a", "b"]
    with pytest.raises(UserError, match="--suite a is given twice; give it once"):
        each_once("--suite", ["a", "b", "a"])
