"""Prints the results of an evaluation on the terminal: a table per task, the chosen lengths, and what could not be read.

A table is as wide as the terminal allows: one that is wider is divided between its columns, and no number is ever cut off. The
best value of a column has a star before it. In a file or a pipe a line has 80 characters, or as many as COLUMNS says.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from flexiclip_eval.report.table import Report, label_of, short_labels, task_table
from flexiclip_eval.suites.layout import printable
from flexiclip_eval.tradeoffs import choice_cells

from flexiclip.text_tables import TextTable, column_groups, column_widths, wrap_words

if TYPE_CHECKING:
    from rich.text import Text

NARROWEST = 24  # characters of a rule next to its choice; with less room it gets lines of its own


def print_report(report: Report) -> None:
    """Print the tables of every task, then the choices, and what could not be read."""
    from rich.console import Console

    width = shutil.get_terminal_size((80, 24)).columns
    several = len(report.models) > 1
    lines: list[Text] = []
    marked = False
    for task in report.tasks:
        table = task_table(report, task)
        marked = marked or bool(table.best)
        lines += [*_styled(wrap_words(table.title, width), "bold"), *table_lines(table, width, several), *_styled([""])]
    if marked:
        lines += _styled(["*: the best of its column. ±: the standard error.", ""], "dim")
    lines += _choices(report, width)
    for name, reason in report.unscored.items():
        said = f"data set {name} could not be scored as a whole: {reason}"
        lines += _styled(wrap_words(said, width, "  "), "yellow")
    if report.bad_samples:
        lines += _styled([f"samples that could not be read and are not counted: {len(report.bad_samples)}"], "yellow")
    console = Console()
    for line in lines:
        console.print(line, soft_wrap=True)


def _styled(lines: list[str], style: str = "") -> list[Text]:
    from rich.text import Text

    return [Text(printable(line), style) for line in lines]


def table_lines(table: TextTable, width: int, several: bool) -> list[Text]:
    """Return a table as lines of at most `width` characters; its parts repeat the model and the length.

    several: whether its first column names the models, which are aligned to the left. The last row, chance, is dim.
    """
    marked = [
        [f"*{cell}" if (number, column) in table.best else cell for column, cell in enumerate(row)]
        for number, row in enumerate(table.rows)
    ]
    heads = [heading.replace("→", "→ ").split(" ") for heading in table.head]
    widths = column_widths(TextTable([max(parts, key=len) for parts in heads], marked))
    lines: list[Text] = []
    for columns in column_groups([each + 2 for each in widths], width + 2, 1 + several):
        height = max(len(heads[i]) for i in columns)
        upper = [[""] * (height - len(heads[i])) + heads[i] for i in columns]
        above = [_line([part[level] for part in upper], columns, widths, several) for level in range(height)]
        rule = _styled(["─" * (sum(widths[i] + 2 for i in columns) - 2)], "dim")
        lines += [*_styled([""]), *above, *rule]
        for number, row in enumerate(marked):
            best = {place for place, i in enumerate(columns) if (number, i) in table.best}
            line = _line([row[i] for i in columns], columns, widths, several, best)
            line.style = "dim" if number == len(marked) - 1 else ""
            lines.append(line)
    return lines


def _line(cells: list[str], columns: list[int], widths: list[int], several: bool, best: set[int] | None = None) -> Text:
    """Return one line of a table. best: the places of the cells that are printed bold."""
    from rich.text import Text

    line = Text()
    for place, (cell, i) in enumerate(zip(cells, columns, strict=True)):
        text = printable(cell)
        padded = text.ljust(widths[i]) if several and i == 0 else text.rjust(widths[i])
        line.append("  " * (place > 0)).append(padded, "bold" if place in (best or ()) else "")
    line.rstrip()
    return line


def _choices(report: Report, width: int) -> list[Text]:
    """Return the chosen lengths as lines whose columns are aligned; the last column is broken between words."""
    if not report.choices:
        return []
    short = short_labels([label_of(model) for model in report.models])
    rows = []
    for choice in report.choices:
        model = [short.get(label_of(choice), label_of(choice))] if len(report.models) > 1 else []
        rows.append([*model, choice.dataset, *choice_cells(choice)])
    *widths, _ = column_widths(TextTable([""] * len(rows[0]), rows))
    indent = sum(widths) + 2 * len(widths)
    narrow = width - indent < NARROWEST
    lines = []
    for *cells, rule in rows:
        padded = [cell.ljust(each) for cell, each in zip(cells, widths, strict=True)]
        if narrow:  # costs and rule have lines of their own
            costs = [cell for cell in cells[-2:] if cell != "–"]
            lines += wrap_words("  ".join(padded[:-2]).rstrip(), width, "  ")
            lines += [f"    {line}" for line in wrap_words("; ".join([*costs, rule]), width - 4)]
        else:
            first, *rest = wrap_words(rule, width - indent)
            lines += [f"{'  '.join(padded)}  {first}", *(" " * indent + line for line in rest)]
    return [*_styled(["Chosen lengths"], "bold"), *_styled(lines), *_styled([""])]
