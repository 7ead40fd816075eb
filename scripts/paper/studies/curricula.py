"""Section 5.4 and arXiv 2305.07017: schedules of the length, compared at equal floating point operations."""

from __future__ import annotations

from scripts.paper.outcomes import Outcomes
from scripts.paper.study import Claim, Measured, Plot, Study, scored

SCHEDULES = {
    "uniform": "flexible",
    "inverse_cost": "inverse_cost",
    "short_to_long": "short_to_long",
    "long_to_short": "long_to_short",
    "clipa": "clipa",
}
"""Schedule -> name of its training."""
OWN = 6
"""The length of the fixed model that the schedules are compared with."""


def measure(seen: Outcomes) -> Measured:
    """Measure the points over the fixed model at its own length, and over the uniform schedule as a mean over lengths."""
    fixed = seen.quality("fixed_6_flops+pi", OWN)
    uniform = seen.mean_quality("flexible")
    figures = {}
    for schedule, training in SCHEDULES.items():
        figures[f"{schedule}_minus_fixed_at_{OWN}"] = seen.quality(training, OWN) - fixed
        if schedule != "uniform":
            figures[f"{schedule}_minus_uniform"] = seen.mean_quality(training) - uniform
    curves = {schedule: seen.by_tokens(training) for schedule, training in SCHEDULES.items()}
    return Measured(figures, {"curricula": {**curves, "fixed at 6": seen.by_tokens("fixed_6_flops+pi")}})


STUDY = Study(
    name="curricula",
    title="Schedules of the length",
    about="Five schedules and a model fixed at 6 x 6 patches are trained, each with as many floating point operations as the run "
    "of the uniform schedule. A schedule that draws short lengths therefore sees more samples.",
    evaluations=scored([*SCHEDULES.values(), "fixed_6_flops+pi"]),
    claims=(
        *(
            Claim(
                f"{schedule}_minus_fixed_at_{OWN}", "5.4", f"`{schedule}` is within 1 point of the fixed model at {OWN}", above=-1
            )
            for schedule in SCHEDULES
        ),
        *(
            Claim(f"{schedule}_minus_uniform", "5.4", f"`{schedule}` is better than `uniform` over all lengths")
            for schedule in SCHEDULES
            if schedule != "uniform"
        ),
    ),
    plots=(Plot("curricula", "Schedules at equal FLOPs", "tokens"),),
    measure=measure,
    remarks=(
        "At equal FLOPs `inverse_cost` sees about 3.2 times as many samples as `uniform`, `clipa` 3.4 times and the fixed "
        "model 2.2 times. At this scale the number of samples is what counts. CLIPA ends with 5 % of the run at long lengths, "
        "which is too short to learn them here.",
    ),
)
