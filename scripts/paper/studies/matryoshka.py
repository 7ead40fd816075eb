"""Section 2 (arXiv 2205.13147): embeddings whose first columns can be used alone, together with flexible length."""

from __future__ import annotations

from scripts.paper.outcomes import LENGTHS, Outcomes
from scripts.paper.study import Claim, Evaluation, Measured, Plot, Study

NARROW, WIDTHS, WHOLE = 32, (32, 64, 128), 256
MODELS = ("clip_matryoshka", "clip_flexible")
OPTION = f"--widths={','.join(map(str, WIDTHS))}"


def measure(seen: Outcomes) -> Measured:
    """Measure the points of the nested loss over the plain one, with the first columns and with all of them."""
    of = {
        (model, width): [seen.quality(model, n, how=".widths", width=width) for n in LENGTHS]
        for model in MODELS
        for width in (*WIDTHS, WHOLE)
    }
    figures = {}
    for width in (*WIDTHS, WHOLE):
        nested, plain = (sum(of[model, width]) / len(LENGTHS) for model in MODELS)
        figures[f"nested_minus_plain_at_width_{width}"] = nested - plain
    figures["width_64_minus_all"] = (sum(of[MODELS[0], 64]) - sum(of[MODELS[0], WHOLE])) / len(LENGTHS)
    tokens = [float(n * n) for n in LENGTHS]
    curves = {f"nested, {width} columns": list(zip(tokens, of[MODELS[0], width], strict=True)) for width in (*WIDTHS, WHOLE)}
    curves |= {f"plain, {width} columns": list(zip(tokens, of[MODELS[1], width], strict=True)) for width in (NARROW, WHOLE)}
    return Measured(figures, {"matryoshka": curves})


STUDY = Study(
    name="matryoshka",
    title="Matryoshka embeddings",
    about="One FlexiCLIP model is trained with the loss at all 256 columns and also at the first 32, 64 and 128, and another one "
    "with the loss at all columns only. Both are scored over the grid of width and length. "
    "`flexiclip eval MODEL --suite S --widths 32,64,128` draws the Pareto front of width and length.",
    evaluations=tuple(Evaluation(model, options=(OPTION,)) for model in MODELS),
    claims=(
        Claim(f"nested_minus_plain_at_width_{NARROW}", "2", "At 32 columns the nested loss is better than the plain one"),
        Claim(f"nested_minus_plain_at_width_{WHOLE}", "2", "At all columns the nested loss costs at most 2 points", above=-2),
        Claim(
            "width_64_minus_all", "2", "With the nested loss, taking a quarter of the columns costs at most 2 points", above=-2
        ),
    ),
    plots=(Plot("matryoshka", "Prefixes of the embedding at every length", "tokens"),),
    measure=measure,
)
