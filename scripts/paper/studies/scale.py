"""Section 6: three widths at every length, compared by floating point operations and by measured speed."""

from __future__ import annotations

from statistics import fmean

from scripts.paper.outcomes import Curve, Outcomes, at_equal_cost, front
from scripts.paper.study import Claim, Evaluation, Measured, Plot, Series, Study

WIDTHS = {48: "width_48", 96: "flexible", 192: "width_192"}
"""Width -> name of its training."""


def measure(seen: Outcomes) -> Measured:
    """Measure the points of each wider model over the narrower one at equal cost, and the cost from which it is better."""
    flops: Series = {}
    times: Series = {}
    for width, training in WIDTHS.items():
        flops[f"width {width}"] = seen.by_cost(training, how=".alone")
        speeds = seen.by_cost(training, cost="images_per_s", how=".alone")
        times[f"width {width}"] = [(1000 / speed, value) for speed, value in speeds]
    figures = {}
    for narrow, wide in ((48, 96), (96, 192)):
        for what, of in (("flops", flops), ("time", times)):
            pairs = at_equal_cost(of[f"width {wide}"], of[f"width {narrow}"])
            if pairs:  # the wide model's cheapest length may cost more than the narrow one's most expensive
                figures[f"{wide}_over_{narrow}_at_equal_{what}"] = fmean([value - theirs for value, theirs in pairs])
        cost = crossing(flops[f"width {wide}"], flops[f"width {narrow}"])
        if cost is not None:
            figures[f"gflops_from_which_{wide}_beats_{narrow}"] = cost
    for what, of in (("flops", flops), ("time", times)):
        figures |= {f"lengths_of_{label.replace(' ', '_')}_on_the_front_of_{what}": n for label, n in on_front(of).items()}
    return Measured(figures, {"scale_flops": flops, "scale_time": times})


def crossing(wide: Curve, narrow: Curve) -> float | None:
    """Return the lowest cost from which on the wide model is better than the narrow one. None if there is none.

    Better means at each length: no length of the narrow model that costs no more is as good.
    """
    found = None
    for cost, value in sorted(wide, reverse=True):
        if any(theirs >= value for c, theirs in narrow if c <= cost):
            break
        found = cost
    return found


def on_front(curves: Series) -> dict[str, int]:
    """Return the number of points of each curve that are on the Pareto front of all curves."""
    unbeaten = front(curves)
    return {label: sum(point in unbeaten for point in points) for label, points in curves.items()}


STUDY = Study(
    name="scale",
    title="A larger model or a longer sequence",
    about="Flexible models of width 48, 96 and 192 see the same number of samples. Their speed is measured with nothing else "
    "running.",
    evaluations=tuple(Evaluation(training, alone=True) for training in WIDTHS.values()),
    claims=(
        Claim("96_over_48_at_equal_flops", "6", "At equal GFLOPs the model of width 96 is better than that of width 48"),
        Claim("192_over_96_at_equal_flops", "6", "At equal GFLOPs the model of width 192 is better than that of width 96"),
        Claim(
            "96_over_48_at_equal_time",
            "6",
            "At equal time per image the model of width 96 is better than that of width 48",
            plot="scale_time",
        ),
        Claim(
            "192_over_96_at_equal_time",
            "6",
            "At equal time per image the model of width 192 is better than that of width 96",
            plot="scale_time",
        ),
    ),
    plots=(
        Plot("scale_flops", "Three widths at every length", "GFLOPs per image", front=True),
        Plot("scale_time", "Three widths at every length", "milliseconds per image, in batches", front=True),
    ),
    measure=measure,
    remarks=(
        "The runs of all widths see the same number of samples, not the same number of FLOPs. Longer training would favour "
        "the wider models.",
    ),
)
