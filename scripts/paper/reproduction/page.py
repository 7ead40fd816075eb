"""Writes docs/explanation/paper.md and its plots from the records of the studies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from flexiclip_eval.report.drawing import LineAxes, draw_lines
from flexiclip_eval.report.table import markdown_table

from . import records
from .outcomes import front
from .records import Record
from .study import Claim, Study
from .verdicts import judge

INTRODUCTION = """# The paper's claims, on two cores

This page tests what FlexiViT ([arXiv 2212.08013](https://arxiv.org/abs/2212.08013)) claims, with this repository's trainer and
evaluation on real data at a small scale: image towers of 0.5 M parameters on 60 px drawings, with {samples:,} training samples
per run. It shows that the code does what the paper describes, and what you can expect of small models. A claim that holds for
ViT-B on ImageNet-21k can fail at this scale, and the other way round.

`scripts/paper.sh` runs all studies and writes the page, and `scripts/paper.sh STUDY` runs one study. A run that was stopped
continues where it stopped.

**Data.** The models are trained on OpenMoji and Fluent emoji. They are scored on two sets: concepts that no run saw, in the
style of OpenMoji, and concepts that were seen, in the style of Noto, which no run saw except those that are fine-tuned on it. The
**quality** of a model is the mean over both sets, and over both directions of retrieval, of recall@5 in percent. For classifiers
it is the accuracy in percent.

**Verdicts.** A claim is a figure and a bound. It *holds* if the mean over seeds is above the bound by a one-sided t-test at 95 %,
and *does not hold* if the mean is below the bound by the same test. Otherwise it is *within the noise*. The test accounts for the
spread over seeds only, because the scored images are the same for all seeds.
"""


def write_page(studies: Sequence[Study], folder: Path, page: Path) -> None:
    """Write the page of the studies that have a record in `folder`. Its plots go into the folder `images` next to it."""
    found = [(study, record) for study in studies if (record := records.read(folder, study.name)) is not None]
    samples = int(found[0][1].budget["samples"]) if found else 0
    lines = [INTRODUCTION.format(samples=samples), "## Claims", "", *_claims_table(found)]
    for study, record in found:
        lines += _section(study, record, page.parent)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _claims_table(found: Sequence[tuple[Study, Record]]) -> list[str]:
    rows = []
    for study, record in found:
        for claim in study.claims:
            plot = f"[plot]({_picture(claim.plot or study.plots[0].key)})"
            command = f"`scripts/paper.sh {study.name}`"
            rows.append([claim.text, claim.section, *_judged(claim, record.figures(claim.figure)), plot, command])
    columns = ["claim", "section", "mean ± spread of seeds", "bound", "verdict", "plot", "command"]
    return markdown_table(columns, rows, left=len(columns))


def _picture(key: str) -> str:
    """Return the path of a plot, relative to the page's folder."""
    return f"images/paper_{key}.png"


def _judged(claim: Claim, figures: Sequence[float]) -> tuple[str, str, str]:
    """Return figure, bound and verdict. There are no figures if the record is older than the claim."""
    if not figures:
        return "", f"> {claim.above:g}", "not measured"
    verdict = judge(figures, claim.above)
    return _figure(verdict.mean, verdict.spread, claim), f"> {claim.above:g}", verdict.words


def _figure(mean: float, spread: float | None, claim: Claim) -> str:
    sign = "+" if claim.unit == "points" else ""
    decimals = 1 if claim.unit == "points" else 2
    return f"{mean:{sign}.{decimals}f}" + ("" if spread is None else f" ± {spread:.{decimals}f}") + f" {claim.unit}".rstrip()


def _section(study: Study, record: Record, folder: Path) -> Iterator[str]:
    seeds = ", ".join(record.seeds)
    machine = record.machine
    yield from ["", f"## {study.title}", "", study.about, ""]
    made = f"at {machine['commit']}, torch {machine['torch']}, {machine['processor']}"
    yield f"`scripts/paper.sh {study.name}`: seeds {seeds}, {made}"
    for plot in study.plots:
        means, ranges = record.curves(plot.key)
        series = {**means, "front": front(means)} if plot.front else means
        axes = LineAxes(plot.title, plot.x, plot.y, plot.log_x, ticks_at_points=plot.x in ("tokens", "layer"))
        draw_lines(series, axes, folder / _picture(plot.key), ranges)
        yield from ["", f"![{plot.title}]({_picture(plot.key)})"]
    yield from ["", *_figures_table(study, record)]
    for remark in study.remarks:
        yield from ["", remark]


def _figures_table(study: Study, record: Record) -> list[str]:
    """Return a table of every figure of every seed, including those that belong to no claim."""
    keys = dict.fromkeys(key for each in record.seeds.values() for key in each.figures)
    rows = [[key.replace("_", " "), *(_cell(each.figures.get(key)) for each in record.seeds.values())] for key in keys]
    return markdown_table(["figure", *(f"seed {seed}" for seed in record.seeds)], rows)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
