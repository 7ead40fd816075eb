"""The one step path against one graph written out here: loss, gradients and weights, for any micro-batch, dropout included."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from kit.launch import Trained
from kit.overrides import load_last
from kit.train_shards import sample
from torch import Tensor, nn

from flexiclip.config import Config
from flexiclip.data.batch import caption_id
from flexiclip.model_folder import LoadedModel, build_model
from flexiclip.models.clip import FlexiCLIP
from flexiclip.models.transformer import MLP
from flexiclip.train.engine import ScalarOptimizer, TorchEngine
from flexiclip.train.objectives import Contrastive, Inputs, make_objective
from flexiclip.train.ranks import Ranks, RunContext
from flexiclip.train.step import Stepper

BATCH, SEQHW, LR, EPS = 12, 3, 0.01, 1e-3
ALONE = Ranks(rank=0, world=1, local_rank=0, device=torch.device("cpu"))
Make = Callable[..., tuple[LoadedModel, Config]]


@pytest.fixture(scope="module")
def make(recipe: list[str]) -> Make:
    """A fresh model of the tiny recipe, the same every time; no clipping and no decay, so that a step is easily written down."""

    def build(*overrides: str) -> tuple[LoadedModel, Config]:
        plain = ["optimizer.grad_clip=null", "optimizer.weight_decay=0", f"optimizer.eps={EPS}", *overrides]
        config = load_last([*recipe, *plain])
        loaded = build_model(config)
        loaded.model.train()
        return loaded, config

    return build


def stepper_of(model: FlexiCLIP, config: Config, micro_batch: int) -> Stepper:
    objective = Contrastive(model, config.loss)
    return Stepper(
        objective=objective,
        engine=TorchEngine(objective.towers, config.optimizer, ALONE),
        scalars=ScalarOptimizer(objective.scalars, config.optimizer, config.model.logit_scale_max),
        micro_batch=lambda _: micro_batch,
        seed=0,
        ranks=ALONE,
    )


@pytest.fixture
def inputs(make: Make) -> Inputs:
    captions = [sample(number)["txt"].decode() for number in range(BATCH)]
    images = torch.randint(256, (BATCH, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Inputs(images, make()[0].tokenizer(captions), torch.arange(BATCH))


def normalized(images: Tensor) -> Tensor:
    """0..255 -> -1..1, which is the recipe's mean and standard deviation of a half."""
    return images / 127.5 - 1


def plain_loss(model: FlexiCLIP, zimg: Tensor, ztxt: Tensor) -> Tensor:
    """InfoNCE (arXiv 2103.00020, figure 3), or where there is a bias the sigmoid loss (arXiv 2303.15343, algorithm 1)."""
    logits = model.logit_scale.exp() * zimg @ ztxt.T
    if model.logit_bias is not None:
        signs = 2 * torch.eye(len(zimg)) - 1
        return -F.logsigmoid(signs * (logits + model.logit_bias)).sum() / len(zimg)
    own = torch.arange(len(zimg))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def gradients_taken(stepper: Stepper) -> dict[str, Tensor]:
    """What the first step's moments say that the gradients were: exp_avg = (1 - beta1) g."""
    beta = 0.9
    towers = {name.removeprefix("exp_avg/"): m for name, m in stepper.engine.moments() if name.startswith("exp_avg/")}
    state = stepper.scalars.state()
    scalars = {name: state[f"exp_avg/{i}"] for i, name in enumerate(("logit_scale", "logit_bias")) if f"exp_avg/{i}" in state}
    return {name: moment / (1 - beta) for name, moment in {**towers, **scalars}.items()}


def assert_equal_to_plain(stepper: Stepper, model: FlexiCLIP, plain: FlexiCLIP, norm: float) -> None:
    """Gradients, their norm over the towers, and the weights after Adam's first step: w - lr g / (|g| + eps).

    Gradients to 1e-5 of the largest in their tensor: a sum over micro-batches is rounded in another order, so an element that
    nearly cancels has no small error of its own, and BLAS rounds by how memory happens to be aligned.
    """
    taken = gradients_taken(stepper)
    weights = dict(model.named_parameters())
    assert taken.keys() == weights.keys()
    total = 0.0
    for name, p in plain.named_parameters():
        assert p.grad is not None
        largest = float(p.grad.abs().max())
        torch.testing.assert_close(taken[name], p.grad, rtol=0, atol=1e-5 * largest, msg=lambda text, n=name: f"{n}: {text}")
        if not name.startswith("logit_"):
            total += float(p.grad.double().square().sum())
        expected = p.detach() - LR * p.grad / (p.grad.abs() + EPS)
        moved = LR * 1e-5 * largest / EPS + 1e-7  # what that error moves a weight by, at most, and the rounding of the weight
        torch.testing.assert_close(weights[name].detach(), expected, rtol=0, atol=moved, msg=lambda text, n=name: f"{n}: {text}")
    assert norm == pytest.approx(total**0.5, rel=1e-5)


@pytest.mark.parametrize("micro_batch", [12, 4, 5, 1])
@pytest.mark.parametrize("overrides", [(), ("loss.kind=sigmoid", "model.logit_bias_init=-10")], ids=["softmax", "sigmoid"])
def test_any_micro_batch_is_the_whole_batch(make: Make, inputs: Inputs, micro_batch: int, overrides: tuple[str, ...]) -> None:
    loaded, config = make(*overrides)
    plain = copy.deepcopy(loaded.model)
    expected = plain_loss(plain, *plain(normalized(inputs.images), inputs.tokens, SEQHW))
    expected.backward()

    stepper = stepper_of(loaded.model, config, micro_batch)
    taken = stepper(inputs, SEQHW, step=0, lr=LR)
    assert taken.loss == pytest.approx(expected.item(), abs=1e-5)
    assert_equal_to_plain(stepper, loaded.model, plain, taken.norm)


def add_dropout(model: FlexiCLIP) -> None:
    """Dropout in every MLP of both towers."""
    for module in list(model.modules()):
        if isinstance(module, MLP):
            module.act = nn.Sequential(module.act, nn.Dropout(0.5))


def test_the_second_pass_sees_the_masks_of_the_first(make: Make, inputs: Inputs) -> None:
    loaded, config = make()
    add_dropout(loaded.model)
    plain = copy.deepcopy(loaded.model)
    stepper = stepper_of(loaded.model, config, micro_batch=4)
    states: list[Tensor] = []
    stepper.engine.module.register_forward_pre_hook(lambda *_: states.append(torch.get_rng_state()))
    taken = stepper(inputs, SEQHW, step=7, lr=LR)

    assert len(states) == 6
    assert all(torch.equal(first, second) for first, second in zip(states[:3], states[3:], strict=True))
    assert not torch.equal(states[0], states[1]), "every micro-batch has the same masks"
    halves = []
    for i, state in enumerate(states[:3]):  # one graph over the three, under the random states that the step used
        torch.set_rng_state(state)
        rows = slice(4 * i, 4 * i + 4)
        halves.append(plain(normalized(inputs.images[rows]), inputs.tokens[rows], SEQHW))
    zimg, ztxt = (torch.cat(half) for half in zip(*halves, strict=True))
    expected = plain_loss(plain, zimg, ztxt)
    expected.backward()
    assert taken.loss == pytest.approx(expected.item(), abs=1e-5)
    assert_equal_to_plain(stepper, loaded.model, plain, taken.norm)


def test_masks_depend_on_the_step_and_on_nothing_before_it(make: Make, inputs: Inputs) -> None:
    """So a resumed run draws them again, and no two steps share them."""
    losses = []
    for step, noise in ((7, 1), (7, 2), (8, 1)):
        loaded, config = make()
        add_dropout(loaded.model)
        torch.manual_seed(noise)
        losses.append(stepper_of(loaded.model, config, micro_batch=4)(inputs, SEQHW, step=step, lr=LR).loss)
    assert losses[0] == losses[1]
    assert losses[2] != losses[0]


@pytest.mark.parametrize("locked", ["image", "text"])
def test_a_frozen_tower_runs_once_a_micro_batch(make: Make, inputs: Inputs, reference: Trained, locked: str) -> None:
    """Four micro-batches: the open tower embeds each of them twice."""
    loaded, config = make(f"model.{locked}.lock=true", f"model.{locked}.init={reference.folder}")
    stepper = stepper_of(loaded.model, config, micro_batch=3)
    calls = {"image": 0, "text": 0}

    def count(tower: str) -> None:
        calls[tower] += 1

    loaded.model.image_tower.register_forward_hook(lambda *_: count("image"))
    loaded.model.text_tower.register_forward_hook(lambda *_: count("text"))
    stepper(inputs, SEQHW, step=0, lr=LR)
    assert calls == {"image": 8, "text": 8} | {locked: 4}


SEEDS = {
    (0, 0, 0): [3432106526021424865, 9035795726243879283, 2263655944378485554],
    (0, 0, 1): [3190361131818674061, 2153128134362782672, 1434636682576504211],
    (0, 0, 7): [3196125972054582676, 6048048838900209085, 5568792303422760039],
    (0, 1, 0): [7947090362437566270, 8977315508090547512, 1860436096727816797],
    (0, 123456, 0): [4897319088439654843, 5961135926366102927, 4813431298489246558],
    (1, 0, 0): [5009287550527980734, 6831484490991166575, 1222497354317048880],
    (5, 1000, 3): [7768861751849646243, 8654275526602151392, 1372097354840532513],
}
"""(seed, step, rank) -> torch's seed for the first three micro-batches. A resumed run depends on them, on any version."""


@pytest.mark.parametrize(("place", "seeds"), SEEDS.items())
def test_the_seeds_of_dropout_are_frozen(make: Make, inputs: Inputs, place: tuple[int, int, int], seeds: list[int]) -> None:
    seed, step, rank = place
    loaded, config = make()
    stepper = replace(stepper_of(loaded.model, config, micro_batch=4), seed=seed, ranks=replace(ALONE, rank=rank))
    taken: list[int] = []
    stepper.engine.module.register_forward_pre_hook(lambda *_: taken.append(torch.initial_seed()))
    stepper(inputs, SEQHW, step=step, lr=LR)
    assert taken == seeds * 2, "the second pass draws as the first"


def test_no_two_micro_batches_of_any_rank_share_a_seed_of_dropout() -> None:
    every = [seed for seeds in SEEDS.values() for seed in seeds]
    assert len(set(every)) == len(every) == 3 * len(SEEDS)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("micro_batch", [12, 5])
def test_mask_identical_leaves_twins_out_of_the_negatives(make: Make, inputs: Inputs, kind: str, micro_batch: int) -> None:
    """Rows 0, 5 and 11 have one caption, rows 3 and 4 another; every other row its own."""
    sigmoid = ["loss.kind=sigmoid", "model.logit_bias_init=-1"] if kind == "sigmoid" else []
    loaded, config = make("loss.mask_identical=true", *sigmoid)
    ids = torch.tensor([0, 1, 2, 3, 3, 0, 6, 7, 8, 9, 10, 0])
    twins = ids[:, None].eq(ids) & ~torch.eye(BATCH, dtype=torch.bool)
    assert int(twins.sum()) == 8
    plain = copy.deepcopy(loaded.model)
    zimg, ztxt = plain(normalized(inputs.images), inputs.tokens, SEQHW)
    logits = plain.logit_scale.exp() * zimg @ ztxt.T
    if kind == "sigmoid":
        assert plain.logit_bias is not None
        signs = 2 * torch.eye(BATCH) - 1
        expected = -F.logsigmoid(signs * (logits + plain.logit_bias)).masked_fill(twins, 0).sum() / BATCH
    else:
        logits = logits.masked_fill(twins, float("-inf"))
        own = torch.arange(BATCH)
        expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    expected.backward()
    assert abs(expected.item() - plain_loss(plain, zimg, ztxt).item()) > 0.01

    stepper = stepper_of(loaded.model, config, micro_batch)
    taken = stepper(replace(inputs, caption_ids=ids), SEQHW, step=0, lr=LR)
    assert taken.loss == pytest.approx(expected.item(), abs=1e-5)
    assert_equal_to_plain(stepper, loaded.model, plain, taken.norm)


def test_a_frozen_text_tower_whose_features_are_kept_does_not_run(
    make: Make, inputs: Inputs, reference: Trained, tmp_path: Path
) -> None:
    """They are computed once, from the training captions, and looked up in each step, by the caption."""
    loaded, config = make("model.text.lock=true", f"model.text.init={reference.folder}")
    captions = [sample(number)["txt"].decode() for number in range(BATCH)]
    ids = torch.tensor([caption_id(caption) for caption in captions])
    calls: list[int] = []
    loaded.model.text_tower.register_forward_hook(lambda module, given, made: calls.append(len(given[0])))
    with torch.no_grad():
        expected = loaded.model.text_tower(inputs.tokens)
    calls.clear()
    objective = make_objective(loaded, None, config, RunContext(ALONE, bf16=False, folder=tmp_path))
    assert sum(calls) == 96, "every distinct caption of the shards, once"
    calls.clear()
    micro = objective.prepare(replace(inputs, caption_ids=ids), SEQHW)
    assert calls == []
    torch.testing.assert_close(micro.inputs[1], expected, rtol=0, atol=1e-5)
    unread = objective.prepare(replace(inputs, caption_ids=ids + 1), SEQHW)
    assert calls == [BATCH], "a caption that could not be read when they were computed"
    torch.testing.assert_close(unread.inputs[1], expected, rtol=0, atol=1e-5)
