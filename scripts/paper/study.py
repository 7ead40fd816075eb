"""Defines how a study declares its evaluations (and with them its trainings), its measurements of a seed, and its claims."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from scripts.paper.outcomes import LENGTHS, Outcomes

Point = tuple[float, float]
Series = dict[str, list[Point]]
"""Label of a curve -> its points (x, y)."""


@dataclass(frozen=True)
class Evaluation:
    """One `flexiclip eval` or `flexiclip analyze` of one run. If several studies have equal ones, it is run once."""

    model: str
    """The name of a training, or `NAME+pi` and the like, which resize the kernel of a model with one patch size."""
    suite: str = "retrieval"
    """The name of a file in scripts/paper/suites."""
    command: Literal["eval", "analyze"] = "eval"
    options: tuple[str, ...] = ()
    lengths: tuple[int, ...] = LENGTHS
    alone: bool = False
    """Whether it measures speed, so that nothing else may run at the same time."""

    @property
    def training(self) -> str:
        """Return the name of the training that makes the model."""
        return self.model.split("+")[0]

    @property
    def name(self) -> str:
        """Return a unique name, which is also the path of the folder."""
        words = [self.model, self.suite, *(["alone"] if self.alone else []), *(o.strip("-").split("=")[0] for o in self.options)]
        return f"{self.command}/{'.'.join(words)}"


@dataclass(frozen=True)
class Claim:
    """A statement of the paper (or of ours) as a figure and a bound. It holds if the figure is above the bound."""

    figure: str
    """A key of Measured.figures."""
    section: str
    """The section of arXiv 2212.08013, without the section sign."""
    text: str
    above: float = 0.0
    unit: str = "points"
    plot: str = ""
    """The key of the plot that shows it. The default is the study's first plot."""


@dataclass(frozen=True)
class Plot:
    """A picture of curves. Its `key` is one of Measured.curves."""

    key: str
    title: str
    x: str
    y: str = "recall@5, %"
    log_x: bool = True
    front: bool = False
    """Whether to also draw the Pareto front of all curves, by their means over seeds."""


@dataclass
class Measured:
    """The figures and curves of one seed."""

    figures: dict[str, float] = field(default_factory=dict)
    curves: dict[str, Series] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """One question, the evaluations that it needs, and its claims. The evaluations imply the trainings."""

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
        """Return the trainings that the evaluations name, without those that these start from."""
        return {each.training for each in self.evaluations}


def scored(models: Sequence[str], suite: str = "retrieval") -> tuple[Evaluation, ...]:
    """Return an evaluation of each model on a suite, at every length."""
    return tuple(Evaluation(model, suite) for model in models)
