"""Collects the tables, goals and curves of a subject, prints them, and writes them as JSON for docs/explanation/benchmarks.md."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from flexiclip.text_tables import markdown, wrap_words
from scripts.pages import describe_machine

WIDTH = 130


def digits(figure: float, count: int = 3) -> str:
    """Format a figure with `count` digits, such as 0.123 and 12.3. From 1,000 on it is an integer, never with an exponent."""
    return f"{figure:,.0f}" if abs(figure) >= 999.5 else f"{figure:.{count}g}"


@dataclass
class Goal:
    """A figure that is wanted, and the one that was measured."""

    what: str
    wanted: float
    found: float
    at_least: bool = True
    """Whether `wanted` is a lower bound. Otherwise it is an upper bound."""

    @property
    def holds(self) -> bool:
        """Return whether the measured figure reaches the bound."""
        return self.found >= self.wanted if self.at_least else self.found <= self.wanted

    def line(self) -> str:
        """Return a line such as `fp32, ViT-Ti: 1.52, wanted >= 1.4: holds`."""
        sign = ">=" if self.at_least else "<="
        verdict = "holds" if self.holds else "DOES NOT HOLD"
        return f"{self.what}: {digits(self.found, 4)}, wanted {sign} {digits(self.wanted)}: {verdict}"


@dataclass
class Grid:
    """A table with its title, the names of its columns, and rows of cells that are ready to print."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)

    def add(self, *cells: object) -> None:
        """Append a row. Floats are printed with three digits, so format ratios and shares as strings first."""
        assert len(cells) == len(self.columns), f"{len(cells)} cells for the columns {self.columns}"
        self.rows.append([digits(cell) if isinstance(cell, float) else str(cell) for cell in cells])
        print(f"{self.title}: " + ", ".join(self.rows[-1]), file=sys.stderr, flush=True)  # progress


@dataclass
class Curves:
    """A plot: label -> [x, y] points, with the names of the axes."""

    title: str
    x: str
    y: str
    series: dict[str, list[tuple[float, float]]]
    log_x: bool = True
    log_y: bool = True


@dataclass
class Record:
    """Everything about one subject."""

    subject: str
    """The name of its module, for example `losses`."""
    about: str
    """One or two sentences about what is compared, and on which work."""
    tables: list[Grid] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    curves: list[Curves] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def table(self, title: str, *columns: str) -> Grid:
        """Add a table to this record, and return it."""
        self.tables.append(Grid(title, list(columns)))
        return self.tables[-1]

    def goal(self, what: str, found: float, *, at_least: float | None = None, at_most: float | None = None) -> None:
        """Add a goal for a figure. Give exactly one of the bounds."""
        wanted = at_least if at_most is None else at_most
        assert wanted is not None
        self.goals.append(Goal(what, wanted, found, at_most is None))

    def curve(self, title: str, x: str, y: str, series: dict[str, list[tuple[float, float]]], *, log: bool = True) -> None:
        """Add a plot of label -> [x, y] points. log: whether both axes are logarithmic."""
        self.curves.append(Curves(title, x, y, series, log_x=log, log_y=log))

    def finish(self, arguments: argparse.Namespace) -> None:
        """Print everything and, with --output, write it as JSON, with the machine and the command."""
        for grid in self.tables:
            print("\n".join([grid.title, "", *markdown(grid.columns, grid.rows), ""]))
        for line in [*(goal.line() for goal in self.goals), *self.notes]:
            print("\n".join(wrap_words(line, WIDTH)))
        if arguments.output is not None:
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            command = " ".join(["python", "-m", f"scripts.bench.subjects.{self.subject}", *_without_output(sys.argv[1:])])
            whole = {"command": command, "machine": describe_machine(), **asdict(self)}
            arguments.output.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def options(description: str | None, *, rounds: int, threads: int = 2) -> argparse.ArgumentParser:
    """Return a parser with the options of every subject: --rounds, --threads, --quick and --output."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="turns of each side; medians are over them")
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds, which only show that it works")
    parser.add_argument("--output", type=Path, help="a JSON file")
    return parser


def _without_output(words: list[str]) -> list[str]:
    kept, skip = [], False
    for word in words:
        if not skip and not word.startswith("--output"):
            kept.append(word)
        skip = word == "--output"
    return kept
