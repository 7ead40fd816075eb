"""Section 3.4: PI-resize compared with other ways to resize the patch embedding of a trained ViT."""

from __future__ import annotations

from scripts.paper.outcomes import LENGTHS, Outcomes
from scripts.paper.study import Claim, Measured, Plot, Study, scored

WAYS = ("pi", "bilinear", "bicubic", "area", "norm")
OTHERS = WAYS[1:]
LARGER, SMALLER = (3, 4, 5), (10, 15)
"""Lengths with larger patches than length 6, and lengths with smaller ones."""


def measure(seen: Outcomes) -> Measured:
    """Measure the points of PI-resize over bilinear resize, and over the best of the others, which may differ between seeds."""
    figures: dict[str, float] = {}
    for where, lengths in (("larger", LARGER), ("smaller", SMALLER)):
        of = {way: seen.mean_quality(f"fixed_6+{way}", lengths) for way in WAYS}
        figures |= {f"{way}_at_{where}_patches": value for way, value in of.items()}
        figures[f"over_bilinear_at_{where}_patches"] = of["pi"] - of["bilinear"]
        figures[f"over_the_best_other_at_{where}_patches"] = of["pi"] - max(of[way] for way in OTHERS)
    return Measured(figures, {"resizing": {way: seen.by_tokens(f"fixed_6+{way}", LENGTHS) for way in WAYS}})


STUDY = Study(
    name="resizing",
    title="PI-resize against other heuristics",
    about="A model that was trained at 6 x 6 patches only is run at other patch sizes, with its kernel resized in five ways.",
    evaluations=scored([f"fixed_6+{way}" for way in WAYS]),
    claims=(
        Claim("over_bilinear_at_larger_patches", "3.4", "At larger patches PI-resize is better than bilinear resize"),
        Claim("over_bilinear_at_smaller_patches", "3.4", "At smaller patches PI-resize is better than bilinear resize"),
        Claim("over_the_best_other_at_larger_patches", "3.4", "At larger patches no other way is as good as PI-resize"),
        Claim("over_the_best_other_at_smaller_patches", "3.4", "At smaller patches no other way is as good as PI-resize"),
    ),
    plots=(Plot("resizing", "A fixed model's kernel, resized in five ways", "tokens"),),
    measure=measure,
    remarks=(
        "`area` is the bilinear resize times the ratio of the areas, the least that is needed to keep the embedding of a "
        "patch of one colour. Where patches grow, it is as good as PI-resize. Where they shrink to 4 px, no kernel keeps all "
        "embeddings (section 3.4), and the least-squares kernel is not the best one.",
    ),
)
