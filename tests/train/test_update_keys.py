"""Each key of `optimizer` and `train` that says how weights are updated, or what a run writes down, by a known number."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kit.launch import Trained
from kit.overrides import load_last
from test_model_keys import CLASSIFY, LENGTHS, perturbed
from test_step import ALONE
from torch import Tensor

from flexiclip.schedules import micro_batches, pair_tokens
from flexiclip.train import ranks as processes
from flexiclip.train.engine import TorchEngine
from flexiclip.train.towers import Classifier, Towers


def one_step(
    recipe: list[str], *overrides: str, steps: int = 1
) -> tuple[dict[str, Tensor], dict[str, Tensor], float, TorchEngine]:
    """(weights before, after, the norm, the engine) of steps with gradients of 0.5 everywhere, at a rate of 0.1."""
    loaded, config = perturbed(recipe, *overrides)
    engine = TorchEngine(Towers(loaded.model.train()), config.optimizer, ALONE)
    before = {name: p.detach().clone() for name, p in engine.towers.named_parameters()}
    norm = 0.0
    for _ in range(steps):
        for p in engine.towers.parameters():
            p.grad = torch.full_like(p, 0.5)
        norm = engine.step(0.1)
    return before, {name: p.detach() for name, p in engine.towers.named_parameters()}, norm, engine


PLAIN = ["optimizer.weight_decay=0", "optimizer.grad_clip=null", "optimizer.eps=1e-8", "optimizer.betas=[0.9,0.98]"]
KERNEL, BIAS = "image_tower.kernel", "image_tower.bias"


def moved(recipe: list[str], *overrides: str, steps: int = 1) -> dict[str, Tensor]:
    before, after, *_ = one_step(recipe, *PLAIN, *overrides, steps=steps)
    return {name: after[name] - before[name] for name in (KERNEL, BIAS)}


def test_optimizer_keys_move_the_weights_as_adamw_says(recipe: list[str]) -> None:
    """Of a constant gradient g AdamW's first step is lr g / (|g| + eps), whatever the betas."""
    for change in moved(recipe).values():
        torch.testing.assert_close(change, torch.full_like(change, -0.1), rtol=0, atol=1e-6)
    for change in moved(recipe, "optimizer.eps=0.5").values():
        torch.testing.assert_close(change, torch.full_like(change, -0.05), rtol=0, atol=1e-6)
    before, after, *_ = one_step(recipe, *PLAIN, "optimizer.weight_decay=0.3")
    torch.testing.assert_close(after[KERNEL], before[KERNEL] * (1 - 0.1 * 0.3) - 0.1, rtol=0, atol=1e-6)
    torch.testing.assert_close(after[BIAS], before[BIAS] - 0.1, rtol=0, atol=1e-6)


def test_optimizer_betas_are_those_of_the_moments(recipe: list[str]) -> None:
    *_, engine = one_step(recipe, *PLAIN, "optimizer.betas=[0.5,0.75]", steps=2)
    moments = dict(engine.moments())
    assert moments[f"exp_avg/{KERNEL}"].unique().tolist() == pytest.approx([0.5 * (1 - 0.5**2)])
    assert moments[f"exp_avg_sq/{KERNEL}"].unique().tolist() == pytest.approx([0.25 * (1 - 0.75**2)])


def test_optimizer_grad_clip_bounds_the_norm_of_all_gradients_together(recipe: list[str]) -> None:
    free = one_step(recipe, *PLAIN)
    count = sum(p.numel() for p in free[0].values())
    assert dict(free[3].moments())[f"exp_avg/{KERNEL}"].unique().tolist() == pytest.approx([0.1 * 0.5]), "null: no clipping"
    for limit in (0.25, 1e6):
        _, _, norm, engine = one_step(recipe, *PLAIN, f"optimizer.grad_clip={limit}")
        assert norm == pytest.approx(0.5 * count**0.5, rel=1e-5), "the norm is that before clipping"
        factor = min(1.0, limit / norm)
        assert dict(engine.moments())[f"exp_avg/{KERNEL}"].unique().tolist() == pytest.approx([0.1 * 0.5 * factor], rel=1e-4)


def test_micro_batches_are_what_the_recipe_says(recipe: list[str]) -> None:
    """A rank of two has six of the twelve. Of 96 tokens a pair at a grid of 4 takes 16 and 16 for its caption."""
    sizes = {}
    for given in ("train.micro_batch_size=4", "train.micro_tokens=96", "train.micro_batch_size=null"):
        config = load_last([*recipe, given])
        size = micro_batches(config.train, pair_tokens(config.model, config.tokenizer), 2)
        sizes[given] = [size(seqhw) for seqhw in LENGTHS]
    assert list(sizes.values()) == [[4, 4, 4, 4], [4, 3, 3, 1], [6, 6, 6, 6]]


def test_precision_is_that_of_the_matrix_products(recipe: list[str]) -> None:
    """The parameters, the embeddings and what a classifier gives are float32 either way."""
    for bf16 in (False, True):
        loaded, _ = perturbed(recipe)
        seen: set[torch.dtype] = set()
        for half in (loaded.model.image_tower, loaded.model.text_tower):
            half.blocks[0].mlp.fc1.register_forward_hook(lambda module, given, made, seen=seen: seen.add(made.dtype))
        autocast = processes.RunContext(ALONE, bf16, Path()).autocast
        towers = Towers(loaded.model, autocast)
        made = towers(*towers.dummy_inputs(torch.device("cpu")), 3)
        assert seen == {torch.bfloat16 if bf16 else torch.float32}
        assert {part.dtype for part in made} == {p.dtype for p in towers.parameters()} == {torch.float32}
        loaded, _ = perturbed(recipe, *CLASSIFY, "model.classes=3")
        classifier = Classifier(loaded.model, autocast)
        assert classifier(*classifier.dummy_inputs(torch.device("cpu")), 3)[0].dtype == torch.float32


def test_threads_are_the_cores_over_the_local_ranks_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    try:
        for local, given, expected in ((3, None, 2), (1, None, 7), (9, None, 1), (3, 5, 5)):
            monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
            processes._device(0, 12, given)
            assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


def test_a_run_obeys_its_schedule_and_its_bookkeeping(fit: Callable[..., Trained], tmp_path: Path) -> None:
    """Many keys at once, each of which leaves a number."""
    given = {
        "train.steps": "84 samples",  # of batches of 12
        "train.log_every": 3,
        "train.save_every": 2,
        "train.keep_last": 2,
        "train.log_samples": "false",
        "train.checkpoint_dir": tmp_path / "elsewhere",
        "optimizer.lr": 0.01,
        "optimizer.schedule": "rsqrt",
        "optimizer.warmup": 2,
        "optimizer.timescale": 4,
        "optimizer.cooldown": 2,
        "loss.kind": "sigmoid",
        "model.logit_bias_init": -10,
        "patch.seqhw": "[3,6]",
        "patch.weights": "[0,1]",
    }
    run = fit(1, *(f"{key}={value}" for key, value in given.items()))
    assert [row["step"] for row in run.rows] == [3, 6, 7]
    assert [row["samples"] for row in run.rows] == [36, 72, 84]
    assert {row["seqhw"] for row in run.rows} == {6}
    lr = [0.01 * (1 + max(0, step - 2) / 4) ** -0.5 * min(1, step / 2) * min(1, (7 - step) / 2) for step in (2, 5, 6)]
    assert run.column("lr").tolist() == pytest.approx(lr)
    assert run.rows[0]["logit_bias"] == pytest.approx(-10, abs=0.05)
    assert {path.name for path in (tmp_path / "elsewhere").iterdir()} == {"step-6", "step-7", "latest"}
    assert not (run.folder / "checkpoints").exists()
    assert not (run.folder / "samples.jsonl").exists()
