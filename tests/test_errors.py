"""Messages of one line: what a terminal may show, and lists of names that are cut."""

from __future__ import annotations

import pytest

from flexiclip.errors import RunError, UserError, listed, one_line


def test_one_line_cuts_at_2000_characters_and_escapes_what_a_terminal_obeys() -> None:
    assert one_line("x" * 2000) == "x" * 2000
    assert one_line("x" * 2001) == "x" * 2000 + " ..."
    assert one_line("a\n\tb  c") == "a b c"
    for character in ("\x1b", "\x07", "\x9b", "\u202e", "\u2028", "\x7f"):
        shown = one_line(f"a{character}b")
        assert shown.isprintable()
        assert character not in shown
    assert one_line("naïve 犬 €") == "naïve 犬 €"


def test_one_line_of_a_very_long_text_does_not_read_all_of_it() -> None:
    """Only the first 8000 characters are looked at: white space beyond what is shown does not matter."""
    assert one_line("a " * 1500 + "b" * 10**6) == "a " * 999 + "a" + "  ..."
    assert one_line(" " * 8000 + "x") == ""


@pytest.mark.parametrize("kind", [UserError, RunError])
def test_messages_of_user_error_and_run_error_are_one_line(kind: type[Exception]) -> None:
    assert str(kind("data.train:\n  no such\tfile \x1b[31m")) == r"data.train: no such file \x1b[31m"
    assert str(kind("x" * 5000)) == "x" * 2000 + " ..."


def test_user_error_is_a_value_error_and_run_error_is_not() -> None:
    """The command line tells them apart by their exit codes, 2 and 1."""
    assert issubclass(UserError, ValueError)
    assert issubclass(RunError, RuntimeError)
    assert not issubclass(RunError, ValueError)


def test_listed_names_the_first_in_alphabetical_order_and_counts_the_others() -> None:
    assert listed([]) == "nothing else"
    assert listed({"b", "a"}) == "a, b"
    assert listed(["c", "a", "b"]) == "a, b, c"
    assert listed(iter(["d", "c", "a", "b", "e"])) == "a, b, c and 2 more"
    assert listed(["b", "a"], shown=1) == "a and 1 more"
