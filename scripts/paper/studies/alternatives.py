"""Section 7: other ways to make a ViT's compute flexible, compared at equal FLOPs in training and inference."""

from __future__ import annotations

from statistics import fmean

from scripts.paper.outcomes import Curve, Outcomes, at_equal_cost
from scripts.paper.study import Claim, Evaluation, Measured, Plot, Study, scored

EXIT_AT, DEPTH = 10, 4
"""The length of the models of flexible depth, and the number of their blocks. The last block is not an early exit."""
KINDS = ("shared", "separate")
NAMES = {"stride": "stride", **{f"depth_{kind}": f"depth, {kind} heads" for kind in KINDS}}
"""Key of a figure -> label of its curve."""


def _exits(kind: str) -> list[str]:
    return [f"depth_{kind}+exit{n}" for n in range(1, DEPTH)] + [f"depth_{kind}"]


def measure(seen: Outcomes) -> Measured:
    """Measure by how many points flexible patch size is better than each other way at the same cost."""
    patch = seen.by_cost("flexible")
    curves: dict[str, Curve] = {"patch size": patch, "stride": seen.by_cost("stride")}
    for kind in KINDS:
        curves[NAMES[f"depth_{kind}"]] = [point for model in _exits(kind) for point in seen.by_cost(model, [EXIT_AT])]
    figures: dict[str, float] = {}
    for name, label in NAMES.items():
        figures[f"patch_over_{name}"] = fmean([theirs - value for value, theirs in at_equal_cost(curves[label], patch)])
    heads = {kind: fmean([seen.quality(model, EXIT_AT) for model in _exits(kind)]) for kind in KINDS}
    figures["separate_heads_over_shared"] = heads["separate"] - heads["shared"]
    return Measured(figures, {"alternatives": curves})


STUDY = Study(
    name="alternatives",
    title="Flexible stride and flexible depth",
    about="Each model is trained with as many floating point operations as the flexible one. The stride model has patches of "
    "20 px, which overlap, at every grid. The depth models have 10 x 10 patches and an exit after each block, with one head "
    "for all exits or a head for each.",
    evaluations=(
        *scored(["flexible", "stride"]),
        *(Evaluation(model, lengths=(EXIT_AT,)) for kind in KINDS for model in _exits(kind)),
    ),
    claims=(
        Claim("patch_over_stride", "7", "Flexible patch size is better than flexible stride at equal GFLOPs"),
        Claim("patch_over_depth_shared", "7", "Flexible patch size is better than early exits with a shared head"),
        Claim("patch_over_depth_separate", "7", "Flexible patch size is better than early exits with separate heads"),
    ),
    plots=(Plot("alternatives", "Three ways to spend less", "GFLOPs per image"),),
    measure=measure,
)
