"""Sections 3.6 and 6: what `flexiclip analyze` finds in a flexible model, and in a fixed model with a resized kernel."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from scripts.paper.outcomes import LENGTHS, Outcomes
from scripts.paper.study import Claim, Evaluation, Measured, Plot, Series, Study

MODELS = ("flexible", "fixed_6+pi")
CUES = ("--cue-conflict=$FLEXICLIP_DATA/cue-conflict",)


def measure(seen: Outcomes) -> Measured:
    """Measure how similar a model is inside at different lengths, what ensembles of lengths gain, and the shape bias."""
    flexible, fixed = (seen.analysis(model) for model in MODELS)
    figures = {
        "cka_of_flexible": fmean(flexible["cka"]["same_layer_mean"]),
        "cka_of_fixed": fmean(fixed["cka"]["same_layer_mean"]),
        "attention_of_flexible": _off_diagonal(flexible["attention"]["correlation"]),
        "attention_of_fixed": _off_diagonal(fixed["attention"]["correlation"]),
        "tokens_of_flexible": _apart(flexible["tokens"]),
        "tokens_of_fixed": _apart(fixed["tokens"]),
        "one_length_over_ensembles": -100 * fmean([task["mean_gain"] for task in flexible["ensembles"]["tasks"]]),
    }
    for what in ("cka", "attention", "tokens"):
        figures[f"{what}_gap"] = figures[f"{what}_of_flexible"] - figures[f"{what}_of_fixed"]
    bias = {int(n): each["nearer"] for n, each in flexible["cue-conflict"]["lengths"].items()}
    figures["shape_bias_change"] = -100 * abs(bias[LENGTHS[-1]] - bias[LENGTHS[0]])
    layers: Series = {
        name: [(float(i), value) for i, value in enumerate(of["cka"]["same_layer_mean"])]
        for name, of in zip(MODELS, (flexible, fixed), strict=True)
    }
    return Measured(
        figures, {"cka": layers, "shape": {"flexible": [(float(n * n), 100 * value) for n, value in sorted(bias.items())]}}
    )


def _off_diagonal(matrix: list[list[float]]) -> float:
    return fmean([value for i, row in enumerate(matrix) for j, value in enumerate(row) if i != j])


def _apart(tokens: dict[str, Any]) -> float:
    """Return the cosine of tokens at the same place over lengths, minus that of tokens at other places."""
    return _off_diagonal(tokens["same_place"]) - _off_diagonal(tokens["elsewhere"])


STUDY = Study(
    name="analyses",
    title="Inside: layers, attention, tokens, ensembles, cues",
    about="`flexiclip analyze` runs on the flexible model and on the model fixed at 6 x 6 patches, with PI-resize. Over all "
    "pairs of lengths it gives the CKA of each layer with itself, the correlation of the attention's relevance maps, and the "
    "cosine of tokens at the same place minus the cosine of tokens at other places.",
    evaluations=tuple(Evaluation(model, command="analyze", options=CUES) for model in MODELS),
    claims=(
        Claim("cka_gap", "3.6", "A flexible model's layers are more alike over lengths than a fixed one's (CKA)", unit=""),
        Claim(
            "attention_gap",
            "3.6",
            "A flexible model's attention maps are more alike over lengths than a fixed one's (correlation)",
            unit="",
        ),
        Claim(
            "tokens_gap",
            "3.6",
            "A flexible model's tokens at one place are more alike than a fixed one's (cosine minus that elsewhere)",
            unit="",
        ),
        Claim("one_length_over_ensembles", "6", "One length is better than an ensemble of lengths that costs as much"),
        Claim(
            "shape_bias_change",
            "6",
            "Shape and texture count alike at the shortest and the longest length, within 5 points",
            above=-5,
            plot="shape",
        ),
    ),
    plots=(
        Plot("cka", "A layer at one length and at another", "layer", "CKA, mean over pairs of lengths", log_x=False),
        Plot("shape", "Nearer to the shape's name than to the texture's", "tokens", "images, %"),
    ),
    measure=measure,
)
