"""Declares every training that a study may need, each only once, so that studies that need the same one share its run.

A setting may contain `{NAME}`, the run folder of another training, which then runs first. SAMPLES, TFLOPS and SHORT are
placeholders for the budget of a run: a number of images, a number of floating point operations, or a quarter of the images.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_RUN = re.compile(r"\{(\w+)\}")
SAMPLES, TFLOPS, SHORT = "train.steps=SAMPLES", "train.steps=TFLOPS", "train.steps=SHORT"


@dataclass(frozen=True)
class Budget:
    """The budget of a run, as a number of samples or of TFLOPs.

    `tflops` is the expected number for the flexible model's run over `samples` samples, so that one run serves for both.
    """

    samples: int
    tflops: float

    def fill(self, setting: str) -> str:
        """Return the setting with SAMPLES, TFLOPS and SHORT replaced by lengths as recipes write them."""
        words = {SAMPLES: f"{self.samples} samples", TFLOPS: f"{self.tflops:g} TFLOPs", SHORT: f"{self.samples // 4} samples"}
        return f"train.steps={words[setting]}" if setting in words else setting


FULL = Budget(samples=20_480, tflops=4.802)
QUICK = Budget(samples=1_024, tflops=0.2401)


@dataclass(frozen=True)
class Training:
    """One `flexiclip train`: the name of a recipe in scripts/paper/recipes, and overrides."""

    name: str
    recipe: str
    settings: tuple[str, ...]

    @property
    def needs(self) -> tuple[str, ...]:
        """Return the trainings whose runs this one starts from."""
        return tuple(dict.fromkeys(name for setting in self.settings for name in _RUN.findall(setting)))


def only(seqhw: int) -> str:
    """Return the setting of a ViT with one patch size."""
    return f"patch.seqhw=[{seqhw}]"


NOTO = "data.train=${FLEXICLIP_DATA:-data}/noto/train-*.tar"
GENTLE = "optimizer.lr=5e-4"  # for fine-tuning
DISTILLED = ("objective=distillation", "distillation.temperature=1.0", "distillation.kl=1.0", "distillation.cosine=1.0")


def _contrastive() -> list[tuple[str, tuple[str, ...]]]:
    return [
        ("flexible", (TFLOPS,)),
        *((f"fixed_{n}", (SAMPLES, only(n))) for n in (3, 6, 10, 15)),
        # curricula
        ("fixed_6_flops", (TFLOPS, only(6))),
        ("inverse_cost", (TFLOPS, "patch.weights=inverse_cost")),
        *((name, (TFLOPS, f"patch.curriculum={name}")) for name in ("short_to_long", "long_to_short", "clipa")),
        # distillation
        ("distilled", (SAMPLES, *DISTILLED, "distillation.teacher={fixed_10}", "model.image.init={fixed_10}")),
        ("distilled_from_random", (SAMPLES, *DISTILLED, "distillation.teacher={fixed_10}")),
        ("flexible_from_teacher", (SAMPLES, "model.image.init={fixed_10}")),
        # transfer
        ("flexible_to_noto", (SHORT, NOTO, GENTLE, only(4), "model.image.init={flexible}")),
        ("fixed_to_noto", (SHORT, NOTO, GENTLE, only(4), "model.image.init={fixed_6}")),
        ("fixed_to_flexible", (SHORT, GENTLE, "model.image.init={fixed_6}")),
        # alternatives
        ("stride", (TFLOPS, "model.image.flexible=stride", "model.image.base_patch_size=20")),
        ("depth_shared", (TFLOPS, only(10), "model.image.exits=[1,2,3]", "model.image.exit_heads=shared")),
        ("depth_separate", (TFLOPS, only(10), "model.image.exits=[1,2,3]", "model.image.exit_heads=separate")),
        # scale
        ("width_48", (SAMPLES, "model.image.width=48")),
        ("width_192", (SAMPLES, "model.image.width=192", "model.image.heads=6")),
    ]


def _classification() -> list[tuple[str, tuple[str, ...]]]:
    distilled = ("objective=distillation", "classification.label_smoothing=0", "data.labels=null")
    return [
        ("classifier_flexible", (SAMPLES,)),
        ("classifier_fixed_6", (SAMPLES, only(6))),
        (
            "classifier_distilled",
            (SAMPLES, *distilled, "distillation.teacher={classifier_fixed_6}", "model.image.init={classifier_fixed_6}"),
        ),
        ("classifier_flexible_to_noto", (SHORT, NOTO, GENTLE, only(4), "model.image.init={classifier_flexible}")),
        ("classifier_fixed_to_noto", (SHORT, NOTO, GENTLE, only(4), "model.image.init={classifier_fixed_6}")),
        ("classifier_fixed_to_flexible", (SHORT, GENTLE, "model.image.init={classifier_fixed_6}")),
    ]


TRAININGS = {
    name: Training(name, recipe, settings)
    for recipe, declared in (
        ("contrastive", _contrastive()),
        ("classification", _classification()),
        (
            "both_towers",
            [
                ("clip_flexible", (SAMPLES,)),
                ("clip_fixed_6", (SAMPLES, only(6))),
                ("clip_matryoshka", (SAMPLES, "loss.widths=[32,64,128]")),
            ],
        ),
        (
            "locked_image",
            [
                ("lit_flexible", (SAMPLES, "model.image.init={classifier_flexible}")),
                ("lit_fixed_6", (SAMPLES, only(6), "model.image.init={classifier_fixed_6}")),
            ],
        ),
    )
    for name, settings in declared
}
"""Name -> training."""


def in_order(names: set[str]) -> list[Training]:
    """Return these trainings and all that they start from, each after those that it needs."""
    ordered: dict[str, Training] = {}

    def add(name: str) -> None:
        for needed in TRAININGS[name].needs:
            add(needed)
        ordered.setdefault(name, TRAININGS[name])

    for name in TRAININGS:
        if name in names:
            add(name)
    return list(ordered.values())


def folders_filled(setting: str, folder: dict[str, str]) -> str:
    """Return the setting with `{NAME}` replaced by the run folders of other trainings."""
    return _RUN.sub(lambda match: folder[match[1]], setting)
