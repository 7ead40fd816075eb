"""The objectives of train/objectives.py, each setting of them, against losses worked out in numpy (tests/kit/loss_by_hand.py).

No run and no engine: an objective is handed outputs as its towers would give them, and asked for its loss. Every weight,
temperature, width, exit and mask therefore has an effect that is known exactly; the gradients are compared with the slope of the
worked-out loss along a random direction.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from kit import loss_by_hand as hand
from kit.two_towers import CLASSES, DIM, IDS, NORMALIZED, ROWS, inputs, model_of, pixels
from torch import Tensor

from flexiclip.config import ClassificationConfig, DistillationConfig, LossConfig
from flexiclip.train.engine import ScalarOptimizer, TorchEngine
from flexiclip.train.objectives import (
    Classification,
    ClassifierDistillation,
    Contrastive,
    Objective,
    PairDistillation,
    Teacher,
)
from flexiclip.train.ranks import Ranks
from flexiclip.train.step import Stepper
from flexiclip.train.towers import TextFeatures

ALONE = Ranks(rank=0, world=1, local_rank=0, device=torch.device("cpu"))
OTHERWISE = {"mean": (0.7, 0.1, 0.5), "std": (0.2, 0.8, 0.4)}


def rows(seed: int, count: int = ROWS, dim: int = DIM) -> Tensor:
    """Unit rows, float64."""
    z = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(z, dim=1)


def assert_loss_and_slope(
    objective: Objective, outputs: Sequence[Tensor], targets: Sequence[Tensor], by_hand: Callable[..., float]
) -> None:
    """The loss, and its slope along one direction in which all outputs and scalars move. by_hand(outputs, scalars)."""
    given = [z.clone().requires_grad_() for z in outputs]
    scalars = list(objective.scalars)
    loss = objective.loss(tuple(given), tuple(targets))
    assert loss.shape == ()
    generator = torch.Generator().manual_seed(11)
    moves = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (*given, *scalars)]
    gradients = torch.autograd.grad(loss, [*given, *scalars])
    slope = sum(float((g.double() * move).sum()) for g, move in zip(gradients, moves, strict=True))

    def along(step: float) -> float:
        moved = [(x.detach().double() + step * move).numpy() for x, move in zip((*given, *scalars), moves, strict=True)]
        return by_hand(moved[: len(given)], [float(s[0]) for s in moved[len(given) :]])

    assert float(loss.detach()) == pytest.approx(along(0.0), rel=1e-6, abs=1e-9)
    assert slope == pytest.approx((along(1e-5) - along(-1e-5)) / 2e-5, rel=2e-5, abs=1e-8)


EXITS = {"none": {}, "shared": {"exits": (1, 2)}, "separate": {"exits": (2,), "exit_heads": "separate"}}


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_contrastive_loss_of_every_exit_width_and_mask_is_that_by_hand(kind: str) -> None:
    sigmoid = {"logit_bias_init": -1.5} if kind == "sigmoid" else {}
    found = []
    for exits, widths, masked in itertools.product(EXITS, ((), (2,), (2, 5), (DIM,)), (False, True)):
        model = model_of(image=EXITS[exits], logit_scale_init=6.0, **sigmoid).model
        with torch.no_grad():  # far from its start
            model.logit_scale.fill_(0.9)
        objective = Contrastive(model, LossConfig(kind, masked, widths))  # type: ignore[arg-type]
        targets = objective.prepare(inputs(), 2).targets
        assert len(targets) == masked
        outputs = [rows(i) for i in range({"none": 1, "shared": 3, "separate": 2}[exits] + 1)]
        expected = (IDS.numpy() if masked else None, widths)

        def by_hand(z: list[hand.Array], s: list[float], expected: Any = expected) -> float:
            return hand.objective([*z[:-1]], z[-1], s[0], s[1] if kind == "sigmoid" else None, *expected)

        assert_loss_at_unit_rows(objective, outputs, targets, by_hand)
        found.append(round(float(objective.loss(tuple(outputs), targets).detach()), 9))
    assert len(set(found)) == 18, "the 24 differ but for (6,), which is the whole width"


def assert_loss_at_unit_rows(
    objective: Objective, outputs: Sequence[Tensor], targets: Sequence[Tensor], by_hand: Callable[..., float]
) -> None:
    """For losses that are stated for unit rows and cut them: the whole width is not normalised again, so nor does it here."""
    given = [z.clone().requires_grad_() for z in outputs]
    loss = objective.loss(tuple(given), tuple(targets))
    scalars = [float(s.detach()[0]) for s in objective.scalars]
    assert float(loss.detach()) == pytest.approx(by_hand([z.numpy() for z in outputs], scalars), rel=1e-6)
    gradients = torch.autograd.grad(loss, [*given, *objective.scalars])
    tangents = [
        torch.randn(z.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i, z in enumerate(given)
    ]
    tangents = [t - (t * z.detach()).sum(1, keepdim=True) * z.detach() for t, z in zip(tangents, given, strict=True)]
    pushes = [0.3, -0.7][: len(scalars)]
    slope = sum(float((g * t).sum()) for g, t in zip(gradients, tangents, strict=False))
    slope += sum(float(g[0]) * push for g, push in zip(gradients[len(given) :], pushes, strict=True))

    def along(step: float) -> float:
        moved = [hand.unit((z.detach() + step * t).numpy()) for z, t in zip(given, tangents, strict=True)]
        return by_hand(moved, [s + step * push for s, push in zip(scalars, pushes, strict=True)])

    assert slope == pytest.approx((along(1e-5) - along(-1e-5)) / 2e-5, rel=2e-5, abs=1e-8)


@pytest.mark.parametrize("micro", [ROWS, 3])
def test_a_step_with_exits_widths_and_masked_twins_has_the_loss_by_hand(micro: int) -> None:
    """Through the stepper, whole and in micro-batches: the loss is that of what the towers gave before the step."""
    settings = {"exits": (1,), "exit_heads": "separate"}
    loaded = model_of(image=settings)
    given, images = inputs(), pixels(inputs().images, NORMALIZED)
    model, losses = loaded.model, {}
    with torch.no_grad():
        zimg = model.project_exits(model.image_tower.forward_exits(images, 3))
        ztxt = model.encode_text(given.tokens, normalize=True)
    for loss in (LossConfig(), LossConfig(mask_identical=True), LossConfig(widths=(2, 4)), LossConfig("softmax", True, (2, 4))):
        fresh = model_of(image=settings).model.train()
        objective = Contrastive(fresh, loss)
        engine = TorchEngine(objective.towers, loaded.config.optimizer, ALONE)
        scalars = ScalarOptimizer(objective.scalars, loaded.config.optimizer, 100.0)
        taken = Stepper(objective, engine, scalars, lambda _: micro, seed=0, ranks=ALONE)(given, 3, step=0, lr=1e-3)
        arrays = [z.double().numpy() for z in (*zimg, ztxt)]
        ids, scale = IDS.numpy() if loss.mask_identical else None, float(model.logit_scale.detach())
        expected = hand.objective(arrays[:-1], arrays[-1], scale, None, ids, loss.widths)
        assert taken.loss == pytest.approx(expected, abs=1e-5)
        losses[loss] = taken.loss
    assert np.diff(sorted(losses.values())).min() > 1e-3, "each setting has another loss"


def test_contrastive_prepare_gives_the_captions_ids_where_they_are_masked() -> None:
    objective = Contrastive(model_of().model, LossConfig(mask_identical=True))
    (ids,) = objective.prepare(inputs(), 2).targets
    assert torch.equal(ids, IDS)
    assert Contrastive(model_of().model, LossConfig()).prepare(inputs(), 2).targets == ()


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_classification_loss_and_targets_are_those_by_hand(kind: str, smoothing: float) -> None:
    model = model_of(text=None, classes=CLASSES, embed_dim=CLASSES).model
    objective = Classification(model, ClassificationConfig(kind, smoothing))  # type: ignore[arg-type]
    given = inputs()
    expected = np.zeros((ROWS, CLASSES))
    for row, labels, shares in zip(expected, given.labels.tolist(), given.shares.double().tolist(), strict=True):
        for label, share in zip(labels, shares, strict=True):
            row[label] += share / (sum(shares) if kind == "softmax" else 1)
    expected = (1 - smoothing) * expected + smoothing / CLASSES
    (targets,) = objective.prepare(given, 2).targets
    np.testing.assert_allclose(targets.numpy(), expected, rtol=0, atol=1e-7)
    logits = 3 * rows(1, dim=CLASSES)
    assert_loss_and_slope(objective, [logits], [targets.double()], lambda z, s: hand.cross_entropy(kind, z[0], expected))
    assert not objective.scalars


@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 1.0), (0.37, 1.0), (1.0, 3.0), (0.37, 3.0), (2.5, 0.5)])
def test_distillation_kl_and_temperature_of_a_classifier_are_those_by_hand(weight: float, temperature: float) -> None:
    student, teacher = (model_of(seed, text=None, classes=CLASSES, embed_dim=CLASSES) for seed in (0, 1))
    config = DistillationConfig(kl=weight, temperature=temperature)
    objective = ClassifierDistillation(student.model, Teacher(teacher, 3), config)
    logits, targets = 3 * rows(1, dim=CLASSES), 4 * rows(2, dim=CLASSES)

    def by_hand(z: list[hand.Array], s: list[float]) -> float:
        return weight * float(hand.kl(z[0], targets.numpy(), temperature).mean())

    assert_loss_and_slope(objective, [logits], [targets], by_hand)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.37, 0.0), (0.0, 1.0), (0.0, 2.2), (0.37, 2.2)])
def test_distillation_kl_cosine_and_temperature_of_two_towers_are_those_by_hand(
    weights: tuple[float, float], temperature: float
) -> None:
    student, teacher = model_of(0), model_of(1, logit_scale_init=9.0)
    with torch.no_grad():
        student.model.logit_scale.fill_(0.8)
        teacher.model.logit_scale.fill_(1.7)
    config = DistillationConfig(kl=weights[0], cosine=weights[1], temperature=temperature)
    objective = PairDistillation(student.model, Teacher(teacher, 3), config)
    assert list(objective.scalars) == ([student.model.logit_scale] if weights[0] else [])
    theirs = rows(5), rows(6)

    def by_hand(z: list[hand.Array], s: list[float]) -> float:
        teachers = theirs[0].numpy(), theirs[1].numpy()
        return hand.pair_distillation((z[0], z[1]), teachers, s[0] if s else 0.0, float(np.float32(1.7)), weights, temperature)

    assert_loss_at_unit_rows(objective, [rows(1), rows(2)], theirs, by_hand)


def test_distillation_compares_similarities_of_a_teacher_of_another_width() -> None:
    student, teacher = model_of(0), model_of(1, embed_dim=9)
    objective = PairDistillation(student.model, Teacher(teacher, 3), DistillationConfig(temperature=2.0))
    outputs, theirs = [rows(1), rows(2)], (rows(5, dim=9), rows(6, dim=9))
    scales = [float(loaded.model.logit_scale.detach()) for loaded in (student, teacher)]
    arrays = [tuple(z.numpy() for z in half) for half in (outputs, theirs)]
    expected = hand.pair_distillation(arrays[0], arrays[1], *scales, (1.0, 0.0), 2.0)
    assert float(objective.loss(tuple(outputs), theirs).detach()) == pytest.approx(expected, rel=1e-6)


@torch.no_grad()
def test_teacher_sees_the_students_pixels_in_its_own_normalisation_at_its_own_length() -> None:
    student = model_of(text=None, classes=CLASSES, embed_dim=CLASSES)
    teacher = model_of(1, text=None, classes=CLASSES, embed_dim=CLASSES, preprocess=OTHERWISE)
    objective = ClassifierDistillation(student.model, Teacher(teacher, 3), DistillationConfig())
    given = inputs()
    prepared = objective.prepare(given, 2)
    assert torch.equal(prepared.inputs[0], given.images), "the student's own pixels are normalised by its towers"
    expected = teacher.model.encode_image(pixels(given.images, OTHERWISE), 3)
    torch.testing.assert_close(prepared.targets[0], expected, rtol=0, atol=1e-5)
    assert not torch.allclose(expected, teacher.model.encode_image(pixels(given.images, NORMALIZED), 3), atol=1e-2)


@torch.no_grad()
def test_teacher_of_two_towers_gives_unit_rows_of_images_and_of_captions_in_its_own_tokens() -> None:
    teacher = model_of(1, preprocess=OTHERWISE)
    words = {f"caption {i}": torch.tensor([7 + i, 3, 1, 0, 0, 0]) for i in range(ROWS)}
    teacher.tokenizer = lambda texts: torch.stack([words[text] for text in texts])  # type: ignore[assignment]
    objective = PairDistillation(model_of(0).model, Teacher(teacher, 2), DistillationConfig())
    given = inputs()
    image, text = objective.prepare(given, 3).targets
    wanted = teacher.model.encode_image(pixels(given.images, OTHERWISE), 2, normalize=True)
    torch.testing.assert_close(image, wanted, rtol=0, atol=1e-5)
    tokens = torch.stack([words[caption] for caption in given.captions])
    torch.testing.assert_close(text, teacher.model.encode_text(tokens, normalize=True), rtol=0, atol=1e-5)
    kept = TextFeatures(torch.tensor([0, 2, 4, 9]), torch.randn(4, 16, generator=torch.Generator().manual_seed(2)))
    found = Teacher(teacher, 2, text_features=kept).text(given.captions, IDS)
    rows_of = kept.rows[torch.tensor([[0, 2, 4, 9].index(i) for i in IDS.tolist()])]
    torch.testing.assert_close(found, teacher.model.project_text(rows_of), rtol=0, atol=1e-6)
