"""Sections 4.2 and 5.1: fine-tuning at a short length and deploying at a long one, and making a model flexible by fine-tuning."""

from __future__ import annotations

from scripts.paper.outcomes import LENGTHS, Outcomes
from scripts.paper.study import Claim, Measured, Plot, Study, scored

TUNED_AT, LONG = 4, (10, 15)
AWAY = tuple(n for n in LENGTHS if n != 6)
TO_NOTO = ("flexible_to_noto+pi", "fixed_to_noto+pi")


def measure(seen: Outcomes) -> Measured:
    """Measure the points on Noto at long lengths after fine-tuning at a short one, and those of a fixed model made flexible."""
    flexible, fixed = (seen.mean_quality(model, LONG, suite="noto") for model in TO_NOTO)
    classifiers = [seen.mean_quality(f"classifier_{model}", LONG, suite="noto_classes") for model in TO_NOTO]
    figures = {
        "long_minus_short": flexible - seen.quality(TO_NOTO[0], TUNED_AT, suite="noto"),
        "flexible_minus_fixed": flexible - fixed,
        "classifier_flexible_minus_fixed": classifiers[0] - classifiers[1],
        "flexified_away": seen.mean_quality("fixed_to_flexible", AWAY) - seen.mean_quality("fixed_6+pi", AWAY),
        "flexified_at_its_own": seen.quality("fixed_to_flexible", 6) - seen.quality("fixed_6+pi", 6),
        "classifier_flexified_away": seen.mean_quality("classifier_fixed_to_flexible", AWAY, suite="classes")
        - seen.mean_quality("classifier_fixed_6+pi", AWAY, suite="classes"),
    }
    curves = {
        "transfer": {
            "flexible, tuned at 4": seen.by_tokens(TO_NOTO[0], suite="noto"),
            "fixed at 6, tuned at 4": seen.by_tokens(TO_NOTO[1], suite="noto"),
        },
        "flexified": {
            "fixed at 6": seen.by_tokens("fixed_6+pi"),
            "made flexible": seen.by_tokens("fixed_to_flexible"),
            "flexible from nothing": seen.by_tokens("flexible"),
        },
    }
    return Measured(figures, curves)


STUDY = Study(
    name="transfer",
    title="Transfer",
    about="A flexible model and a model fixed at 6 x 6 patches are fine-tuned on Noto at 4 x 4 patches only, with a quarter of "
    "the samples, and scored on unseen concepts in Noto's style at every length. In a second experiment the fixed model is "
    "fine-tuned at all lengths, with as few samples.",
    evaluations=(
        *scored(TO_NOTO, "noto"),
        *scored([f"classifier_{model}" for model in TO_NOTO], "noto_classes"),
        *scored(["flexible", "fixed_6+pi", "fixed_to_flexible"]),
        *scored(["classifier_fixed_6+pi", "classifier_fixed_to_flexible"], "classes"),
    ),
    claims=(
        Claim("flexible_minus_fixed", "4.2", "Tuned short and deployed long, a flexible model is better than a fixed one"),
        Claim("classifier_flexible_minus_fixed", "4.2", "The same holds for classifiers"),
        Claim("long_minus_short", "4.2", "Tuned short, a flexible model loses at most 2 points at long lengths", above=-2),
        Claim("flexified_away", "5.1", "Flexible fine-tuning makes a fixed model work at other lengths", plot="flexified"),
        Claim("classifier_flexified_away", "5.1", "The same holds for classifiers", plot="flexified"),
        Claim(
            "flexified_at_its_own",
            "5.1",
            "Flexible fine-tuning costs the fixed model at most 2 points at its own length",
            above=-2,
            plot="flexified",
        ),
    ),
    plots=(
        Plot("transfer", "Fine-tuned on Noto at 16 tokens", "tokens"),
        Plot("flexified", "A fixed model made flexible by fine-tuning", "tokens"),
    ),
    measure=measure,
    remarks=(
        "After fine-tuning at 4 x 4 patches, the fixed model is the better one at short lengths, where it was tuned, and fails "
        "at long lengths. The flexible model keeps the choice of a length.",
    ),
)
