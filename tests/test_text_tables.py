"""Tables as text, against layouts that were written down by hand."""

from __future__ import annotations

import pytest

from flexiclip.text_tables import TextTable, column_groups, column_widths, escape_latex, latex, markdown, wrap_words


@pytest.mark.parametrize(
    ("room", "repeated", "expected"),
    [
        (100, 1, [[0, 1, 2, 3, 4]]),
        (40, 1, [[0, 1, 2, 3, 4]]),  # exactly as wide as the table
        (39, 1, [[0, 1, 2, 3], [0, 4]]),
        (24, 1, [[0, 1], [0, 2, 3], [0, 4]]),
        (31, 2, [[0, 1, 2], [0, 1, 3, 4]]),
        (1, 1, [[0, 1], [0, 2], [0, 3], [0, 4]]),  # no table is without a column of its own
        (22, 0, [[0, 1], [2, 3], [4]]),
    ],
)
def test_columns_are_divided_and_the_first_ones_repeated(room: int, repeated: int, expected: list[list[int]]) -> None:
    assert column_groups([5, 12, 9, 8, 6], room, repeated) == expected


def test_markdown_is_aligned_and_keeps_its_columns() -> None:
    assert column_widths(TextTable(["a", "bb"], [["long", "1"]])) == [4, 2]
    assert markdown(["name", "n"], [["a|b", "1"], ["c", "1,000"]]) == [
        "| name |     n |",
        "|------|------:|",
        "| a\\|b |     1 |",
        "| c    | 1,000 |",
    ]


def test_latex_escapes_texts_and_marks_the_best() -> None:
    table = TextTable(["model", "acc1"], [["a_b & {c}", "50.0% ±2.7"], ["~^\\", "–"]], "10% of $x$ #1", {(0, 1)})
    assert latex(table) == [
        "\\begin{table}",
        "\\centering",
        "\\caption{10\\% of \\$x\\$ \\#1}",
        "\\begin{tabular}{lr}",
        "\\toprule",
        "model & acc1 \\\\",
        "\\midrule",
        "a\\_b \\& \\{c\\} & \\textbf{50.0\\% $\\pm$2.7} \\\\",
        "\\textasciitilde{}\\textasciicircum{}\\textbackslash{} & -- \\\\",
        "\\bottomrule",
        "\\end{tabular}",
        "\\end{table}",
    ]
    assert escape_latex("text→image") == "text$\\rightarrow$image"


def test_lines_are_broken_between_words_alone() -> None:
    assert wrap_words("one two-three four", 20) == ["one two-three four"]
    assert wrap_words("a path/that-is/longer/than-the-line b", 20, "  ") == ["a", "  path/that-is/longer/than-the-line", "  b"]
    assert wrap_words("", 20) == [""]
