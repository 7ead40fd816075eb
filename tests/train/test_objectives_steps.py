"""What a step of each new objective computes, against one graph written out here, whole and in micro-batches."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from kit.launch import Trained
from kit.overrides import load_last
from kit.train_shards import sample
from test_step import ALONE, BATCH, LR, SEQHW, normalized
from torch import Tensor

from flexiclip.config import ClassificationConfig, Config, DistillationConfig
from flexiclip.model_folder import LoadedModel, build_model
from flexiclip.models.clip import FlexiCLIP
from flexiclip.train.engine import ScalarOptimizer, TorchEngine
from flexiclip.train.objectives import (
    Classification,
    ClassifierDistillation,
    Inputs,
    Objective,
    PairDistillation,
    Teacher,
    follow,
    open_teacher,
    teacher_seqhw,
)
from flexiclip.train.step import Stepper

CLASSES, TEACHER_SEQHW = 5, 4
LABELS = torch.tensor([[i % CLASSES, (i * i + 1) % CLASSES] for i in range(BATCH)])
SHARES = torch.tensor([[0.7, 0.3], [1.0, 0.0], [1.0, 1.0]]).repeat(BATCH // 3, 1)
"""Mixtures, images of one class, images of two."""

Plain = Callable[[FlexiCLIP, Inputs], Tensor]


def built(recipe: list[str], *overrides: str) -> tuple[LoadedModel, Config]:
    """A model of the tiny recipe, without clipping and decay; a classifier's head is not left at zero."""
    config = load_last([*recipe, "optimizer.grad_clip=null", "optimizer.weight_decay=0", *overrides])
    loaded = build_model(config)
    if config.model.text is None:
        torch.nn.init.normal_(loaded.model.image_projection.weight, generator=torch.Generator().manual_seed(config.seed))
    loaded.model.train()
    return loaded, config


def inputs_for(loaded: LoadedModel) -> Inputs:
    captions = [sample(number)["txt"].decode() for number in range(BATCH)]
    images = torch.randint(256, (BATCH, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    alone = loaded.config.model.text is None
    tokens = torch.empty(BATCH, 0) if alone else loaded.tokenizer(captions)
    return Inputs(images, tokens, torch.arange(BATCH), LABELS, SHARES, captions)


def assert_step_equals(objective: Objective, model: FlexiCLIP, config: Config, inputs: Inputs, plain: Plain, micro: int) -> None:
    """Loss and gradients, which the first moments hold, of a step in micro-batches of so many."""
    other = copy.deepcopy(model)
    expected = plain(other, inputs)
    expected.backward()
    engine = TorchEngine(objective.towers, config.optimizer, ALONE)
    scalars = ScalarOptimizer(objective.scalars, config.optimizer, config.model.logit_scale_max)
    outcome = Stepper(objective, engine, scalars, lambda _: micro, seed=0, ranks=ALONE)(inputs, SEQHW, step=0, lr=LR)
    assert outcome.loss == pytest.approx(expected.item(), abs=1e-5)
    taken = {name.removeprefix("exp_avg/"): m / 0.1 for name, m in engine.moments() if name.startswith("exp_avg/")}
    taken |= {"logit_scale": scalars.state()["exp_avg/0"] / 0.1} if objective.scalars else {}
    gradients = {name: p.grad for name, p in other.named_parameters() if p.grad is not None}
    assert taken.keys() == gradients.keys()
    for name, gradient in gradients.items():
        bound = 2e-5 * float(gradient.abs().max()) + 1e-8
        torch.testing.assert_close(taken[name], gradient, rtol=0, atol=bound, msg=lambda text, n=name: f"{n}: {text}")


ALONE_TOWER = ("model.text=null", f"model.classes={CLASSES}", "model.image.projection_bias=true")
MICRO = [12, 5]


@pytest.mark.parametrize("micro", MICRO)
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_step_of_classification_equals_the_plain_graph(recipe: list[str], kind: str, micro: int) -> None:
    loaded, config = built(recipe, "objective=classification", "data.labels=cls", *ALONE_TOWER)

    def plain(model: FlexiCLIP, inputs: Inputs) -> Tensor:
        logits = model.encode_image(normalized(inputs.images), SEQHW)
        targets = torch.zeros(BATCH, CLASSES)
        for row in range(BATCH):
            for label, share in zip(LABELS[row].tolist(), SHARES[row].tolist(), strict=True):
                targets[row, label] += share / (SHARES[row].sum() if kind == "softmax" else 1.0)
        targets = 0.9 * targets + 0.1 / CLASSES
        if kind == "softmax":
            return -(targets * logits.log_softmax(1)).sum(1).mean()
        return -(targets * F.logsigmoid(logits) + (1 - targets) * F.logsigmoid(-logits)).sum(1).mean()

    objective = Classification(loaded.model, ClassificationConfig(kind, 0.1))  # type: ignore[arg-type]
    assert_step_equals(objective, loaded.model, config, inputs_for(loaded), plain, micro)


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    """At a temperature of 2."""
    p, q = (teacher / 2).softmax(1), (student / 2).softmax(1)
    return 4 * (p * (p / q).log()).sum(1).mean()


@pytest.mark.parametrize("micro", MICRO)
def test_a_step_of_distilling_a_classifier_equals_the_plain_graph(recipe: list[str], micro: int) -> None:
    (loaded, config), (teacher, _) = (
        built(recipe, "objective=classification", "data.labels=cls", *ALONE_TOWER, f"seed={seed}") for seed in (0, 1)
    )
    teacher.model.requires_grad_(False).eval()

    def plain(model: FlexiCLIP, inputs: Inputs) -> Tensor:
        images = normalized(inputs.images)
        return 0.25 * kl(model.encode_image(images, SEQHW), teacher.model.encode_image(images, TEACHER_SEQHW))

    objective = ClassifierDistillation(
        loaded.model, Teacher(teacher, TEACHER_SEQHW), DistillationConfig(temperature=2.0, kl=0.25)
    )
    assert_step_equals(objective, loaded.model, config, inputs_for(loaded), plain, micro)


@pytest.mark.parametrize("micro", MICRO)
def test_a_step_of_distilling_two_towers_equals_the_plain_graph(recipe: list[str], micro: int) -> None:
    (loaded, config), (teacher, _) = (built(recipe, f"seed={seed}") for seed in (0, 1))
    teacher.model.requires_grad_(False).eval()

    def plain(model: FlexiCLIP, inputs: Inputs) -> Tensor:
        images = normalized(inputs.images)
        zimg, ztxt = model(images, inputs.tokens, SEQHW)
        timg, ttxt = teacher.model(images, inputs.tokens, TEACHER_SEQHW)
        ours, theirs = model.logit_scale.exp() * zimg @ ztxt.T, teacher.model.logit_scale.exp() * timg @ ttxt.T
        cosine = 1 - (F.cosine_similarity(zimg, timg) + F.cosine_similarity(ztxt, ttxt)).mean() / 2
        return 0.5 * (kl(ours, theirs) + kl(ours.T, theirs.T)) / 2 + 3 * cosine

    given = DistillationConfig(temperature=2.0, kl=0.5, cosine=3.0)
    objective = PairDistillation(loaded.model, Teacher(teacher, TEACHER_SEQHW), given)
    assert_step_equals(objective, loaded.model, config, inputs_for(loaded), plain, micro)


@pytest.mark.parametrize(("trained", "expected"), [("[3,6,2]", 6), ("[2]", 2), ("[4,3]", 4)])
def test_a_teacher_runs_at_the_longest_length_that_it_was_trained_at(recipe: list[str], trained: str, expected: int) -> None:
    teacher, config = built(recipe, f"patch.seqhw={trained}")
    assert teacher_seqhw(None, config.model.image.image_size, teacher) == expected
    assert teacher_seqhw(3, config.model.image.image_size, teacher) == 3


def test_a_student_of_pairs_starts_with_its_teachers_scale_and_a_bound_above_it(recipe: list[str]) -> None:
    teacher, config = built(recipe)
    teacher.model.logit_scale.data.fill_(math.log(250.0))
    followed = follow(config.model, teacher)
    assert followed.logit_scale_init == pytest.approx(250.0)
    assert followed.logit_scale_max == pytest.approx(250.0)
    teacher.model.logit_scale.data.fill_(math.log(20.0))
    followed = follow(config.model, teacher)
    assert (followed.logit_scale_init, followed.logit_scale_max) == (pytest.approx(20.0), 100.0)


def test_a_teacher_is_frozen_in_eval_mode_and_keeps_its_own_preprocessing(recipe: list[str], reference: Trained) -> None:
    config = load_last([*recipe, "objective=distillation", f"distillation.teacher={reference.folder}"])
    loaded = open_teacher(config.distillation, config.model, torch.device("cpu"))
    assert not any(module.training for module in loaded.model.modules())
    assert not any(p.requires_grad for p in loaded.model.parameters())
    own = replace(loaded.config.model.preprocess, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))
    teacher = Teacher(replace(loaded, config=replace(loaded.config, model=replace(loaded.config.model, preprocess=own))), 4)
    images = inputs_for(built(recipe)[0]).images
    pixels = (images / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.25, 1.0]).view(3, 1, 1)
    with torch.no_grad():
        expected = loaded.model.encode_image(pixels, 4)
    torch.testing.assert_close(teacher.image(images, unit=False), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(teacher.image(images, unit=True), F.normalize(expected, dim=1), rtol=0, atol=1e-5)
