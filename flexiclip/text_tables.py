"""Lays out tables as text: Markdown that is also aligned for a terminal, LaTeX, and the division of a table that is too wide.

No function shortens a cell, because a number that is cut off is wrong. A table that is wider than the terminal is divided
into several tables, which repeat its first columns.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

_LATEX = {
    "\\": r"\textbackslash{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "→": r"$\rightarrow$",
    "×": r"$\times$",
    "–": "--",
}


@dataclass
class TextTable:
    """A table whose cells are texts. `best` has the (row, column) of the cells that a layout marks."""

    head: list[str]
    rows: list[list[str]] = field(default_factory=list)
    title: str = ""
    best: set[tuple[int, int]] = field(default_factory=set)


def column_groups(widths: Sequence[int], room: int, repeated: int = 1) -> list[list[int]]:
    """Divide the columns of a table among as many tables as `room` needs, and return the numbers of the columns of each.

    widths: what each column takes, with the space that separates it from the next one. The first `repeated` columns are in
    every table. Each table has at least one further column, even if it does not fit.
    """
    first = list(range(min(repeated, len(widths))))
    groups = [[*first]]
    for column in range(len(first), len(widths)):
        used = sum(widths[each] for each in groups[-1])
        if used + widths[column] > room and len(groups[-1]) > len(first):
            groups.append([*first])
        groups[-1].append(column)
    return groups


def column_widths(table: TextTable) -> list[int]:
    """Return the number of characters of the widest cell of each column."""
    return [max(map(len, column)) for column in zip(table.head, *table.rows, strict=True)]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    """Return the lines of a Markdown table whose columns are also aligned: the first `left` to the left, the others to the right.

    A bar inside a cell is escaped, because it would end the cell.
    """
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        parts = (c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return "| " + " | ".join(parts) + " |"

    rule = "|" + "|".join("-" * (w + 2) if i < left else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return [line(lines[0]), rule, *map(line, lines[1:])]


def latex(table: TextTable, left: int = 1) -> list[str]:
    """Return the lines of a LaTeX table with the rules of the package booktabs. The best cells are bold."""
    columns = "l" * left + "r" * (len(table.head) - left)
    body = []
    for number, row in enumerate(table.rows):
        cells = [escape_latex(cell) for cell in row]
        marked = [rf"\textbf{{{cell}}}" if (number, column) in table.best else cell for column, cell in enumerate(cells)]
        body.append(" & ".join(marked) + r" \\")
    caption = [rf"\caption{{{escape_latex(table.title)}}}"] if table.title else []
    return [
        r"\begin{table}",
        r"\centering",
        *caption,
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(map(escape_latex, table.head)) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def escape_latex(text: str) -> str:
    """Return a text whose special characters LaTeX prints as they are."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def wrap_words(text: str, width: int, indent: str = "") -> list[str]:
    """Break a text into lines of at most `width` characters between words; a longer word keeps a line of its own.

    indent: put before every line except the first.
    """
    return textwrap.wrap(text, max(width, 20), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) or [""]
