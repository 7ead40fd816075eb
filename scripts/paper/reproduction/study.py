"""What a study of the paper declares: what it trains and scores, what it measures of one seed, and what it claims."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .outcomes import LENGTHS, Outcomes

Point = tuple[float, float]
Series = dict[str, list[Point]]
"""Curve's label -> its points (x, y)."""


@dataclass(frozen=True)
class Evaluation:
    """One `flexiclip eval` or `flexiclip analyze` of one run. Equal ones of several studies are made once."""

    model: str
    """A training's name; `NAME+pi` and the like flex a model of one patch size."""
    suite: str = "retrieval"
    """A file of scripts/paper/suites."""
    command: Literal["eval", "analyze"] = "eval"
    options: tuple[str, ...] = ()
    lengths: tuple[int, ...] = LENGTHS
    alone: bool = False
    """Whether it measures speed, so that nothing else may run."""

    @property
    def training(self) -> str:
        """The training that makes the model."""
        return self.model.split("+")[0]

    @property
    def name(self) -> str:
        """Unique among different evaluations; fit for a folder."""
        words = [self.model, self.suite, *(["alone"] if self.alone else []), *(o.strip("-").split("=")[0] for o in self.options)]
        return f"{self.command}/{'.'.join(words)}"


@dataclass(frozen=True)
class Claim:
    """A statement of the paper (or of ours) as a figure and a bound: the statement holds where the figure is above it."""

    figure: str
    """A key of Measured.figures."""
    section: str
    """Of arXiv 2212.08013, without the sign."""
    text: str
    above: float = 0.0
    unit: str = "points"
    plot: str = ""
    """The key of the plot that shows it; the study's first by default."""


@dataclass(frozen=True)
class Plot:
    """A picture: one of the keys of Measured.curves."""

    key: str
    title: str
    x: str
    y: str = "recall@5, %"
    log_x: bool = True
    front: bool = False
    """Whether the Pareto front of all curves, by their means over seeds, is drawn too."""


@dataclass
class Measured:
    """Of one seed."""

    figures: dict[str, float] = field(default_factory=dict)
    curves: dict[str, Series] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """One question, its trainings by way of its evaluations, and its answers."""

    name: str
    title: str
    about: str
    evaluations: tuple[Evaluation, ...]
    claims: tuple[Claim, ...]
    plots: tuple[Plot, ...]
    measure: Callable[[Outcomes], Measured]
    remarks: tuple[str, ...] = ()

    @property
    def trainings(self) -> set[str]:
        """Those that its evaluations name; what these start from comes on top."""
        return {each.training for each in self.evaluations}


def scored(models: Sequence[str], suite: str = "retrieval") -> tuple[Evaluation, ...]:
    """Each model on a suite, at every length."""
    return tuple(Evaluation(model, suite) for model in models)
