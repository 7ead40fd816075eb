"""Section 5.2: flexible length with both towers trained from scratch (CLIP), and with the image tower locked (LiT)."""

from __future__ import annotations

from scripts.paper.outcomes import LENGTHS, Outcomes
from scripts.paper.study import Claim, Measured, Plot, Study, scored

AWAY = tuple(n for n in LENGTHS if n != 6)
KINDS = {"clip": "FlexiCLIP", "lit": "FlexiLiT with a locked image tower"}


def measure(seen: Outcomes) -> Measured:
    """Measure the points of each flexible pair of towers over the pair with a fixed image tower."""
    figures = {}
    for kind in KINDS:
        flexible, fixed = f"{kind}_flexible", f"{kind}_fixed_6+pi"
        figures[f"{kind}_at_6"] = seen.quality(flexible, 6) - seen.quality(fixed, 6)
        figures[f"{kind}_away"] = seen.mean_quality(flexible, AWAY) - seen.mean_quality(fixed, AWAY)
    curves = {f"{kind}_{how}": seen.by_tokens(f"{kind}_{how}") for kind in KINDS for how in ("flexible", "fixed_6+pi")}
    return Measured(figures, {"towers": curves})


STUDY = Study(
    name="towers",
    title="FlexiCLIP and FlexiLiT",
    about="FlexiCLIP trains both towers from scratch. FlexiLiT trains a new text tower for a locked image tower, which is the "
    "flexible or the fixed classifier of the study of transfer. The studies above, by contrast, train the image tower against "
    "a pretrained, locked text encoder.",
    evaluations=scored([f"{kind}_{how}" for kind in KINDS for how in ("flexible", "fixed_6+pi")]),
    claims=tuple(
        claim
        for kind, name in KINDS.items()
        for claim in (
            Claim(f"{kind}_at_6", "5.2", f"{name} comes within 2 points of the fixed pair at its length", above=-2),
            Claim(f"{kind}_away", "5.2", f"{name} is better than the fixed pair at other lengths"),
        )
    ),
    plots=(Plot("towers", "Two more ways to pair the towers", "tokens"),),
    measure=measure,
)
