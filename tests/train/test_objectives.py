"""Classification and distillation in real runs: the same on any engine, rank and micro-batch, and after a resume."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from kit.alike import ENGINES, assert_same_weights
from kit.launch import Trained
from safetensors.torch import save_file

from flexiclip.model_folder import load_model

Fit = Callable[..., Trained]

COLOURS = "model.classes=[red,green,blue,yellow,grey]"
CLASSIFY = [
    "objective=classification",
    "model.text=null",
    COLOURS,
    "model.image.projection_bias=true",
    "data.labels=cls",
    "data.mixup=0.2",
    "classification.label_smoothing=0.1",
]
PAIRS = ["objective=distillation", "distillation.cosine=0.5", "distillation.temperature=2"]
LOGITS = ["objective=distillation", "model.text=null", "model.image.projection_bias=true", "data.mixup=0.2"]


@pytest.fixture(scope="module")
def classifier(fit: Fit) -> Trained:
    """20 steps on one rank under plain torch."""
    return fit(1, *CLASSIFY)


@pytest.fixture(scope="module")
def opinionated(fit: Fit) -> Trained:
    """A classifier whose logits differ enough to be worth following."""
    return fit(1, *CLASSIFY, "optimizer.lr=1e-2")


@pytest.fixture(scope="module")
def recipes(opinionated: Trained, reference: Trained) -> dict[str, list[str]]:
    """The overrides of each objective. The pair's student starts anew, with a text tower half as deep as its teacher's."""
    return {
        "classification": CLASSIFY,
        "pairs": [*PAIRS, f"distillation.teacher={reference.folder}", "seed=1", "model.text.depth=1"],
        "logits": [*LOGITS, f"distillation.teacher={opinionated.folder}", "seed=1"],
    }


@pytest.fixture(scope="module")
def alone(fit: Fit, classifier: Trained, recipes: dict[str, list[str]]) -> dict[str, Trained]:
    """Each objective on one rank under plain torch, each batch of 12 at once."""
    return {"classification": classifier, **{name: fit(1, *recipes[name]) for name in ("pairs", "logits")}}


OTHERS = [
    ("classification", 2, "zero1", "train.micro_batch_size=2"),
    ("classification", 1, "torch", "train.micro_tokens=100"),
    ("pairs", 2, "torch", "train.micro_batch_size=3"),
    ("pairs", 1, "zero1", "train.micro_batch_size=null"),
    ("logits", 2, "zero1", "train.micro_batch_size=4"),
]
SLOW = [
    (objective, (1, 3)[(o + e) % 2], engine, "train.micro_batch_size=2")
    for (o, objective), (e, engine) in product(enumerate(("classification", "pairs", "logits")), enumerate(ENGINES))
]
"""Each objective under each engine, and the number of ranks in turn, so that every pair is tested."""


@pytest.mark.parametrize(
    ("objective", "world", "engine", "micro"), [*OTHERS, *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW)]
)
def test_any_engine_and_micro_batch_trains_alike(
    fit: Fit, recipes: dict[str, list[str]], alone: dict[str, Trained], objective: str, world: int, engine: str, micro: str
) -> None:
    run, reference = fit(world, *recipes[objective], *ENGINES[engine], micro), alone[objective]
    assert run.samples == reference.samples
    np.testing.assert_allclose(run.column("loss"), reference.column("loss"), rtol=0, atol=1e-4)
    np.testing.assert_allclose(run.column("grad_norm"), reference.column("grad_norm"), rtol=1e-3, atol=1e-5)
    assert_same_weights(run, reference, tolerance=2e-5)
    assert ("logit_scale" in run.rows[0]) == (objective == "pairs")


@pytest.mark.parametrize(
    ("objective", "world", "engine"),
    [("classification", 1, "torch"), ("logits", 1, "torch"), pytest.param("pairs", 2, "zero1", marks=pytest.mark.slow)],
)
def test_a_resumed_run_is_the_same_run(
    fit: Fit, recipes: dict[str, list[str]], alone: dict[str, Trained], objective: str, world: int, engine: str
) -> None:
    """From the checkpoint that the recipe writes at step 10."""
    whole = alone[objective] if engine == "torch" else fit(world, *recipes[objective], *ENGINES[engine])
    resumed = fit(world, *recipes[objective], *ENGINES[engine], f"train.resume={whole.checkpoint(10)}")
    assert resumed.timeless() == whole.timeless()[10:]
    assert resumed.samples == whole.samples[10:]
    assert all(torch.equal(resumed.weights()[name], tensor) for name, tensor in whole.weights().items())


def test_a_classifier_learns_and_its_folder_says_its_classes(classifier: Trained) -> None:
    losses = classifier.column("loss")
    assert losses[0] == pytest.approx(math.log(5), abs=1e-5)  # a head of zeros has no opinion
    assert losses[-5:].mean() < losses[:5].mean()
    loaded = load_model(classifier.folder)
    assert loaded.config.model.classes == ("red", "green", "blue", "yellow", "grey")
    assert loaded.config.model.embed_dim == 5
    assert loaded.config.model.text is None
    logits = loaded.model.encode_image(torch.zeros(2, 3, 48, 48), seqhw=3)
    assert logits.shape == (2, 5)


def test_the_tower_of_a_classifier_serves_lit(fit: Fit, classifier: Trained) -> None:
    run = fit(1, f"model.image.init={classifier.folder}", "model.image.lock=true", "model.embed_dim=5", "train.steps=2")
    tower = {name: t for name, t in classifier.weights().items() if name.startswith("image_tower.")}
    assert all(torch.equal(run.weights()[name], tensor) for name, tensor in tower.items())
    head = classifier.weights()["image_projection.weight"]
    assert not torch.equal(run.weights()["image_projection.weight"], head)


STILL = ["train.steps=4", "patch.seqhw=[4]", "distillation.seqhw=4", "optimizer.lr=1e-12"]


@pytest.mark.parametrize("kind", ["pairs", "logits"])
def test_a_student_that_is_its_teacher_has_no_loss_and_no_gradient(
    fit: Fit, recipes: dict[str, list[str]], alone: dict[str, Trained], opinionated: Trained, reference: Trained, kind: str
) -> None:
    """Another student of the same teacher has both."""
    teacher = opinionated if kind == "logits" else reference
    halves = ["image"] if kind == "logits" else ["image", "text"]
    start = [f"model.{half}.init={teacher.folder}" for half in halves]
    depth = [] if kind == "logits" else ["model.text.depth=2"]
    run = fit(1, *recipes[kind], *depth, *start, *STILL, "train.micro_batch_size=4")
    assert np.abs(run.column("loss")).max() < 1e-6
    assert run.column("grad_norm").max() < 1e-5
    assert min(alone[kind].rows[0]["loss"], alone[kind].rows[0]["grad_norm"]) > 0.01


def test_a_teacher_from_timm(fit: Fit, tmp_path: Path) -> None:
    """A classifier of timm's on its own size of image, 24 px, teaches a FlexiViT. One that starts from it has nearly nothing to
    learn at the teacher's patch, which the first step draws; from random weights it learns at every length."""
    import timm

    from flexiclip.formats.run import ImportOptions, import_weights

    torch.manual_seed(0)
    sizes = {"img_size": 24, "patch_size": 12, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 6}
    vit = timm.models.vision_transformer.VisionTransformer(**sizes, class_token=False, global_pool="avg", fc_norm=False)
    vit.head.weight.data.normal_(std=0.5)
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    teacher = tmp_path / "teacher"
    import_weights(str(tmp_path / "vit.safetensors"), "timm", teacher, ImportOptions(heads=2))
    given = [
        *LOGITS,
        f"distillation.teacher={teacher}",
        "distillation.seqhw=4",
        "model.image.activation=gelu",
        "optimizer.lr=3e-3",
    ]
    started = fit(1, *given, f"model.image.init={teacher}")
    anew = fit(1, *given)
    assert "the patch kernel PI-resized from 12x12 to 16x16" in (started.folder.parent / "log.0").read_text()
    assert (started.rows[0]["seqhw"], anew.rows[0]["seqhw"]) == (4, 4)
    assert started.rows[0]["loss"] < 0.05 * anew.rows[0]["loss"]
    assert anew.column("loss")[-5:].mean() < anew.column("loss")[:5].mean()
    assert load_model(started.folder).config.model.embed_dim == 6


def test_labels_that_are_no_classes_are_replaced_and_named(fit: Fit, recipe: list[str], tmp_path: Path) -> None:
    run = fit(1, *CLASSIFY, "model.classes=[red,green,blue,yellow]", "train.steps=2", "data.max_bad_fraction=1")
    named = (run.folder / "bad_samples.jsonl").read_text()
    assert "label 'grey' is none of the 4 classes" in named
