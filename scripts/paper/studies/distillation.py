"""Section 3.5: a flexible student of a ViT with small patches, started from the teacher's weights or from random ones."""

from __future__ import annotations

from scripts.paper.outcomes import Outcomes
from scripts.paper.study import Claim, Measured, Plot, Study, scored

STUDENTS = ("flexible", "distilled", "distilled_from_random", "flexible_from_teacher")
TAUGHT_AT = 10
CLASSIFIERS = ("classifier_flexible", "classifier_distilled")


def measure(seen: Outcomes) -> Measured:
    """Measure by how many points the distilled student is better than the same model trained otherwise (mean over lengths)."""
    of = {name: seen.mean_quality(name) for name in STUDENTS}
    classes = {name: seen.mean_quality(name, suite="classes") for name in CLASSIFIERS}
    figures = {
        "over_random_start": of["distilled"] - of["distilled_from_random"],
        "over_training": of["distilled"] - of["flexible"],
        "over_start_alone": of["distilled"] - of["flexible_from_teacher"],
        "classifier_over_training": classes["classifier_distilled"] - classes["classifier_flexible"],
        "teacher_at_its_length": seen.quality("fixed_10+pi", TAUGHT_AT),
        "student_at_its_length": seen.quality("distilled", TAUGHT_AT),
    }
    curves = {name: seen.by_tokens(name) for name in ("fixed_10+pi", *STUDENTS)}
    return Measured(figures, {"distillation": curves})


STUDY = Study(
    name="distillation",
    title="Distillation from a fixed teacher",
    about="The teacher is the model fixed at 10 x 10 patches. Each student sees as many samples as the flexible model that was "
    "trained without a teacher; the teacher's own training is not counted. The teacher of the classifiers is a classifier at "
    "6 x 6 patches.",
    evaluations=(*scored([*STUDENTS, "fixed_10+pi"]), *scored(CLASSIFIERS, "classes")),
    claims=(
        Claim(
            "over_random_start",
            "3.5",
            "A student that starts from the teacher is better than one from random weights",
        ),
        Claim("over_training", "3.5", "Distillation from the teacher's weights is better than training from scratch"),
        Claim("over_start_alone", "3.5", "Distillation from the teacher's weights is better than contrastive training from them"),
        Claim("classifier_over_training", "3.5", "A distilled flexible classifier is better than one trained from scratch"),
    ),
    plots=(Plot("distillation", "Students, a teacher, and training without one", "tokens"),),
    measure=measure,
)
