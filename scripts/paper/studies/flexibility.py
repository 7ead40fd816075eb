"""Sections 3.2 and 3.3: is one flexible model as good as a ViT of each patch size, and does such a ViT work at others?"""

from __future__ import annotations

from statistics import fmean

from scripts.paper.outcomes import LENGTHS, Outcomes
from scripts.paper.study import Claim, Measured, Plot, Study, scored

FIXED = (3, 6, 15)


def measure(seen: Outcomes) -> Measured:
    """Measure the points of the flexible model over fixed ones, at their own lengths and at other lengths."""
    flexible = {n: seen.quality("flexible", n) for n in LENGTHS}
    fixed = {(own, n): seen.quality(f"fixed_{own}+pi", n) for own in FIXED for n in LENGTHS}
    away = [flexible[n] - value for (own, n), value in fixed.items() if n != own]
    figures = {f"flexible_minus_fixed_at_{own}": flexible[own] - fixed[own, own] for own in FIXED}
    figures |= {"at_their_own": fmean(list(figures.values())), "away": fmean(away)}
    figures["fixed_6_falls_by"] = fixed[6, 6] - fmean([fixed[6, n] for n in LENGTHS if n != 6])
    curves = {name: seen.by_tokens(name) for name in ("flexible", *(f"fixed_{own}+pi" for own in FIXED))}
    return Measured(figures, {"flexibility": curves})


STUDY = Study(
    name="flexibility",
    title="One model for every length",
    about="A flexible model is compared with three models of one patch size, which see as many samples. Those three are "
    "PI-resized to the other lengths.",
    evaluations=scored(["flexible", *(f"fixed_{own}+pi" for own in FIXED)]),
    claims=(
        Claim("at_their_own", "3.3", "One flexible model is within 2 points of fixed models at their own lengths", above=-2),
        Claim("away", "3.2", "Away from the length that it was trained at, a fixed model is worse than the flexible one"),
        Claim("fixed_6_falls_by", "3.2", "A fixed model loses quality at other lengths than its own"),
    ),
    plots=(Plot("flexibility", "Trained at every length, and at one", "tokens"),),
    measure=measure,
)
