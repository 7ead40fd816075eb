"""Every key of a recipe does something: each is set by itself, and what comes of it is a known number, or at least another one.

A key that is in no table here fails test_every_key_has_a_witness.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launch import Trained
from test_run_folder import leaves
from test_step import ALONE
from torch import Tensor, nn
from train_shards import sample, write_shard

from flexiclip.bundle import LoadedModel, build_model
from flexiclip.config import Config, load
from flexiclip.data.dataset import open_sources
from flexiclip.data.loader import train_loader
from flexiclip.schedules import micro_batches
from flexiclip.train.engines.engine import TorchEngine
from flexiclip.train.engines.towers import Classifier, Towers
from flexiclip.train.processes import ranks as processes
from flexiclip.train.setup import data_of, labels_of

TESTS = Path(__file__).parents[1]

# --- What the towers compute

MODEL: dict[str, list[str]] = {
    "model.image.variant": ["model.image.variant=Ti", "model.image.width=null", "model.image.heads=null"],
    "model.image.width": ["model.image.width=16"],
    "model.image.depth": ["model.image.depth=1"],
    "model.image.heads": ["model.image.heads=4"],
    "model.image.mlp_dim": ["model.image.mlp_dim=48"],
    "model.image.image_size": ["model.image.image_size=96"],
    "model.image.base_patch_size": ["model.image.base_patch_size=24"],
    "model.image.base_grid": ["model.image.base_grid=3"],
    "model.image.flexible": ["model.image.flexible=stride", "patch.seqhw=[3,4,6]"],
    "model.image.exits": ["model.image.exits=[1]"],
    "model.image.default_seqhw": ["model.image.default_seqhw=2"],
    "model.image.pool": ["model.image.pool=tok"],
    "model.image.activation": ["model.image.activation=quick_gelu"],
    "model.image.norm_eps": ["model.image.norm_eps=0.5"],
    "model.image.pre_norm": ["model.image.pre_norm=true"],
    "model.image.patch_bias": ["model.image.patch_bias=false"],
    "model.image.kernel_resize": ["model.image.kernel_resize=bicubic"],
    "model.image.kernel_antialias": ["model.image.kernel_antialias=true"],
    "model.image.grid_resize": ["model.image.grid_resize=bicubic"],
    "model.image.grid_antialias": ["model.image.grid_antialias=false"],
    "model.image.projection": ["model.image.projection=none"],
    "model.image.projection_bias": ["model.image.projection_bias=true"],
    "model.text.variant": ["model.text.variant=Ti", "model.text.width=null", "model.text.heads=null"],
    "model.text.width": ["model.text.width=16"],
    "model.text.depth": ["model.text.depth=1"],
    "model.text.heads": ["model.text.heads=4"],
    "model.text.mlp_dim": ["model.text.mlp_dim=48"],
    "model.text.causal": ["model.text.causal=true"],
    "model.text.pad_mask": ["model.text.pad_mask=false"],
    "model.text.pool": ["model.text.pool=mean"],
    "model.text.activation": ["model.text.activation=quick_gelu"],
    "model.text.norm_eps": ["model.text.norm_eps=0.5"],
    "model.text.projection": ["model.text.projection=none"],
    "model.text.projection_bias": ["model.text.projection_bias=true"],
    "model.preprocess.mean": ["model.preprocess.mean=[0.4,0.5,0.6]"],
    "model.preprocess.std": ["model.preprocess.std=[0.4,0.5,0.6]"],
    "model.embed_dim": ["model.embed_dim=24"],
    "tokenizer.context_length": ["tokenizer.context_length=5"],
}
"""Key -> overrides that turn it on."""

LENGTHS = (2, 3, 4, 6)


def perturbed(recipe: list[str], *overrides: str) -> tuple[LoadedModel, Config]:
    """A model whose every parameter is drawn by its name and shape: settings that keep those keep the weights."""
    config = load(recipe[0], [*recipe[1:], *overrides])
    loaded = build_model(config)
    for name, p in loaded.model.named_parameters():
        seed = sum(map(ord, name)) + 7 * p.numel()
        p.data = 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
        p.data += 1.0 if "norm" in name and name.endswith("weight") else 0.0
    loaded.model.eval()
    return loaded, config


@torch.no_grad()
def outputs(recipe: list[str], *overrides: str) -> list[Tensor]:
    """Of both towers, at each length and at the one that a model takes when none is named."""
    loaded, config = perturbed(recipe, *overrides)
    size = config.model.image.image_size
    images = torch.randint(256, (4, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    tokens = loaded.tokenizer(["a red", *(sample(number)["txt"].decode() for number in range(3))])
    found = [
        part
        for seqhw in LENGTHS
        if seqhw in config.patch.seqhw
        for part in Towers(loaded.model, bf16=False)(images, tokens, seqhw)
    ]
    return [*found, loaded.model.encode_image(images.float() / 255), tokens]


@pytest.fixture(scope="module")
def plain(recipe: list[str]) -> list[Tensor]:
    return outputs(recipe)


def differ(one: list[Tensor], other: list[Tensor]) -> bool:
    pairs = zip(one, other, strict=False)
    return len(one) != len(other) or any(
        a.shape != b.shape or not torch.allclose(a.float(), b.float(), atol=1e-4) for a, b in pairs
    )


def test_the_same_recipe_gives_the_same_outputs(recipe: list[str], plain: list[Tensor]) -> None:
    assert not differ(outputs(recipe), plain)


@pytest.mark.parametrize("key", MODEL)
def test_a_key_of_the_model_changes_what_the_towers_compute(recipe: list[str], plain: list[Tensor], key: str) -> None:
    assert differ(outputs(recipe, *MODEL[key]), plain)


def test_exit_heads_are_the_towers_or_their_own(recipe: list[str]) -> None:
    shared, own = (outputs(recipe, "model.image.exits=[1]", f"model.image.exit_heads={kind}") for kind in ("shared", "separate"))
    assert differ(shared, own)


@pytest.mark.parametrize(
    ("half", "unlock", "blocks"), [("image", 0, set()), ("image", 1, {1}), ("text", 0, set()), ("text", 1, {1})]
)
def test_lock_and_unlock_last_say_which_blocks_train(
    recipe: list[str], reference: Trained, half: str, unlock: int, blocks: set[int]
) -> None:
    """And `init` where the weights come from."""
    given = [f"model.{half}.{key}" for key in ("lock=true", f"unlock_last={unlock}", f"init={reference.folder}")]
    model = build_model(load(recipe[0], [*recipe[1:], "seed=5", *given])).model
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    tower = {name for name in trained if name.startswith(f"{half}_tower.")}
    assert {int(name.split(".")[2]) for name in tower if ".blocks." in name} == blocks
    assert bool(tower) == bool(blocks)
    assert f"{half}_projection.weight" in trained
    other = "text" if half == "image" else "image"
    assert any(name.startswith(f"{other}_tower.blocks.0.") for name in trained)
    weights = reference.weights()
    same = {name for name, p in model.named_parameters() if torch.equal(p, weights[name])}
    assert {name for name in weights if name.startswith(f"{half}_tower.")} <= same
    assert f"{other}_tower.blocks.0.mlp.fc1.weight" not in same


CLASSIFY = ["objective=classification", "model.text=null", "data.labels=cls", "model.image.projection_bias=true"]


def test_the_scalars_and_a_classifiers_head_start_where_the_recipe_says(recipe: list[str]) -> None:
    given = ["loss.kind=sigmoid", "model.logit_bias_init=-7.5", "model.logit_scale_init=20", "model.logit_scale_max=30"]
    model = build_model(load(recipe[0], [*recipe[1:], *given])).model
    assert model.logit_scale.item() == pytest.approx(math.log(20))
    assert model.logit_bias is not None
    assert model.logit_bias.item() == -7.5
    names = ["red", "green", "blue"]
    config = load(recipe[0], [*recipe[1:], *CLASSIFY, f"model.classes=[{','.join(names)}]", "model.head_bias_init=-4"])
    loaded = build_model(config)
    head = loaded.model.image_projection
    assert isinstance(head, nn.Linear)
    assert head.bias.tolist() == [-4.0] * 3
    assert not head.weight.any()
    assert loaded.config.model.classes == tuple(names)


# --- How the weights are updated


def one_step(
    recipe: list[str], *overrides: str, steps: int = 1
) -> tuple[dict[str, Tensor], dict[str, Tensor], float, TorchEngine]:
    """(weights before, after, the norm, the engine) of steps with gradients of 0.5 everywhere, at a rate of 0.1."""
    loaded, config = perturbed(recipe, *overrides)
    engine = TorchEngine(Towers(loaded.model.train(), bf16=False), config, ALONE)
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
    for limit in (0.25, 1e6):
        _, _, norm, engine = one_step(recipe, *PLAIN, f"optimizer.grad_clip={limit}")
        assert norm == pytest.approx(0.5 * count**0.5, rel=1e-5), "the norm is that before clipping"
        factor = min(1.0, limit / norm)
        assert dict(engine.moments())[f"exp_avg/{KERNEL}"].unique().tolist() == pytest.approx([0.1 * 0.5 * factor], rel=1e-4)


def test_micro_batches_are_what_the_recipe_says(recipe: list[str]) -> None:
    """A rank of two has six of the twelve. Of 96 tokens a pair at a grid of 4 takes 16 and 16 for its caption."""
    sizes = {}
    for given in ("train.micro_batch_size=4", "train.micro_tokens=96", "train.micro_batch_size=null"):
        size = micro_batches(load(recipe[0], [*recipe[1:], given]), 2)
        sizes[given] = [size(seqhw) for seqhw in LENGTHS]
    assert list(sizes.values()) == [[4, 4, 4, 4], [4, 3, 3, 1], [6, 6, 6, 6]]


def test_precision_is_that_of_the_matrix_products(recipe: list[str]) -> None:
    """The parameters, the embeddings and what a classifier gives are float32 either way."""
    for bf16 in (False, True):
        loaded, _ = perturbed(recipe)
        seen: set[torch.dtype] = set()
        for half in (loaded.model.image_tower, loaded.model.text_tower):
            half.blocks[0].mlp.fc1.register_forward_hook(lambda module, given, made, seen=seen: seen.add(made.dtype))
        towers = Towers(loaded.model, bf16=bf16)
        made = towers(*towers.dummy_inputs(torch.device("cpu")), 3)
        assert seen == {torch.bfloat16 if bf16 else torch.float32}
        assert {part.dtype for part in made} == {p.dtype for p in towers.parameters()} == {torch.float32}
        loaded, _ = perturbed(recipe, *CLASSIFY, "model.classes=3")
        classifier = Classifier(loaded.model, bf16=bf16)
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


# --- What is read of the samples


def jpeg(number: int) -> dict[str, Any]:
    """A sample as a JPEG of 480 pixels, with a second caption and a class."""
    import io

    from PIL import Image

    pixels = np.random.default_rng(number).integers(0, 256, (15, 15, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((480, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    made = sample(number)
    return {"__key__": made["__key__"], "jpg": buffer.getvalue(), "png": made["png"], "txt": made["txt"], "alt": b"another one"}


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("jpegs")
    for shard in range(4):
        write_shard(folder / f"{shard}.tar", [{**jpeg(6 * shard + n), "cls": b"red"} for n in range(6)])
    return f"data.train={folder}/*.tar"


DATA: dict[str, list[str]] = {
    "seed": ["seed=3"],
    "data.image_keys": ["data.image_keys=[png]"],
    "data.captions": ["data.captions=[alt]"],
    "data.window_shards": ["data.window_shards=1"],
    "data.crop_scale": ["data.crop_scale=[0.1,0.2]"],
    "data.crop_ratio": ["data.crop_ratio=[0.2,0.3]"],
    "data.flip": ["data.flip=true"],
    "data.scaled_decoding": ["data.scaled_decoding=false"],
    "data.sequential": ["data.sequential=true"],
    "model.preprocess.interpolation": ["model.preprocess.interpolation=bilinear"],
}


def first_batch(recipe: list[str], *overrides: str) -> list[Any]:
    config = load(recipe[0], [*recipe[1:], *overrides])
    loaded = build_model(config)
    sources = None if config.data.sequential else open_sources(data_of(config), config.seed, labels_of(config))
    batches = train_loader(
        data_of(config),
        image_size=(48, 48),
        interpolation=config.model.preprocess.interpolation,
        tokenizer=None if config.model.text is None else loaded.tokenizer,
        trim=True,
        pad_id=loaded.model.text_tower.pad_id,
        seed=config.seed,
        rank=0,
        world=1,
        global_batch_size=12,
        start_step=0,
        steps=1,
        sources=sources,
        labels=labels_of(config),
    )
    batch = next(iter(batches))
    return [batch.images, batch.captions, batch.samples, batch.shares]


def same(one: list[Any], other: list[Any]) -> bool:
    return all(torch.equal(a, b) if isinstance(a, Tensor) else list(a) == list(b) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def read(recipe: list[str], jpegs: str) -> list[Any]:
    return first_batch(recipe, jpegs)


def test_the_same_recipe_reads_the_same_batch(recipe: list[str], jpegs: str, read: list[Any]) -> None:
    assert same(first_batch(recipe, jpegs), read)


@pytest.mark.parametrize("key", DATA)
def test_a_key_of_the_data_changes_what_is_read(recipe: list[str], jpegs: str, read: list[Any], key: str) -> None:
    assert not same(first_batch(recipe, jpegs, *DATA[key]), read)


def test_mixup_mixes_images_and_their_shares(recipe: list[str], jpegs: str) -> None:
    classify = [*CLASSIFY, "model.classes=[red,green]", jpegs]
    plain, mixed = first_batch(recipe, *classify), first_batch(recipe, *classify, "data.mixup=5")
    assert plain[2] == mixed[2]
    kept = float(mixed[3].max())
    assert 0.5 <= kept < 1
    expected = kept * plain[0].float() + (1 - kept) * plain[0].float().roll(1, 0)
    assert (mixed[0].float() - expected)[1:].abs().max() <= 0.5 + 1e-3


# --- Every key

HERE: dict[str, str] = {
    **dict.fromkeys(MODEL, "test_a_key_of_the_model_changes_what_the_towers_compute"),
    **dict.fromkeys(DATA, "test_a_key_of_the_data_changes_what_is_read"),
    "model.image.exit_heads": "test_exit_heads_are_the_towers_or_their_own",
    **{
        f"model.{half}.{key}": "test_lock_and_unlock_last_say_which_blocks_train"
        for half in ("image", "text")
        for key in ("lock", "unlock_last", "init")
    },
    **{
        f"model.{key}": "test_the_scalars_and_a_classifiers_head_start_where_the_recipe_says"
        for key in ("logit_scale_init", "logit_bias_init", "head_bias_init", "classes")
    },
    "optimizer.eps": "test_optimizer_keys_move_the_weights_as_adamw_says",
    "optimizer.weight_decay": "test_optimizer_keys_move_the_weights_as_adamw_says",
    "optimizer.betas": "test_optimizer_betas_are_those_of_the_moments",
    "optimizer.grad_clip": "test_optimizer_grad_clip_bounds_the_norm_of_all_gradients_together",
    "train.micro_batch_size": "test_micro_batches_are_what_the_recipe_says",
    "train.micro_tokens": "test_micro_batches_are_what_the_recipe_says",
    "train.precision": "test_precision_is_that_of_the_matrix_products",
    "train.threads": "test_threads_are_the_cores_over_the_local_ranks_unless_given",
    "data.mixup": "test_mixup_mixes_images_and_their_shares",
    "objective": "test_mixup_mixes_images_and_their_shares",
    **dict.fromkeys(
        (
            *("train.steps", "train.global_batch_size", "train.log_every", "train.save_every", "train.keep_last"),
            *("train.log_samples", "train.checkpoint_dir", "optimizer.lr", "optimizer.schedule", "optimizer.warmup"),
            *("optimizer.timescale", "optimizer.cooldown", "loss.kind", "patch.seqhw", "patch.weights", "run_dir", "data.train"),
        ),
        "test_a_run_obeys_its_schedule_and_its_bookkeeping",
    ),
}
"""Key -> the test of this file that shows its effect."""

ELSEWHERE = {
    "model.logit_scale_max": "train/test_engines.py",
    "model.text.kind": "models/test_text_foreign.py",
    "model.text.name": "models/test_text_foreign.py",
    "model.text.sha256": "models/test_text_foreign.py",
    "model.text.vocab_size": "models/test_text.py",
    "model.text.pad_id": "models/test_text.py",
    "model.text.eos_id": "models/test_text.py",
    "model.text.context_length": "models/test_text_positions.py",
    "model.preprocess.resize": "data/test_images.py",
    **{f"tokenizer.{key}": "data/test_tokenizers.py" for key in ("kind", "path", "vocab_size", "lowercase", "sticky_eos")},
    "data.labels": "data/test_labels.py",
    "data.allow_shell": "data/test_shell.py",
    "data.workers": "data/test_loader.py",
    "data.prefetch": "data/test_stages.py",
    "data.index_cache": "data/test_shards.py",
    "data.read_attempts": "data/test_reading.py",
    "data.read_timeout_s": "data/test_reading.py",
    "data.stall_s": "train/test_processes.py",
    "data.max_bad_fraction": "train/test_faults.py",
    "patch.stages": "test_schedules.py",
    "patch.curriculum": "test_curricula.py",
    "patch.spread": "test_curricula.py",
    "patch.finish": "test_curricula.py",
    "loss.mask_identical": "train/test_step.py",
    "loss.widths": "train/test_nested_widths.py",
    "classification.loss": "train/test_targets.py",
    "classification.label_smoothing": "train/test_objectives.py",
    "distillation.teacher": "train/test_objectives.py",
    **{f"distillation.{key}": "train/test_targets.py" for key in ("seqhw", "temperature", "kl", "cosine")},
    "train.activation_checkpointing": "train/test_blocks.py",
    "train.compile": "train/test_compile.py",
    "train.on_nonfinite": "train/test_nonfinite.py",
    "train.save_in_background": "train/test_recorder.py",
    "train.keep_every": "train/test_checkpoints.py",
    "train.resume": "train/test_resume.py",
    "train.rank_timeout_s": "train/test_heartbeat.py",
    "engine.kind": "train/alike.py",
    "engine.zero_stage": "train/alike.py",
    "engine.offload": "train/test_matrix.py",
    "engine.deepspeed": "config/test_validate.py",
    "eval.suites": "test_cli.py",
    "eval.every": "train/test_evaluation.py",
    "eval.seqhw": "config/test_validate.py",
    "eval.batch_size": "config/test_validate.py",
}
"""Key -> the file, under tests/, that does, by the key's name."""


def test_every_key_has_a_witness() -> None:
    assert HERE.keys() | ELSEWHERE.keys() == set(leaves(Config))
    assert not HERE.keys() & ELSEWHERE.keys()
    for name in HERE.values():
        assert callable(globals()[name])
    for key, file in ELSEWHERE.items():
        assert key.rpartition(".")[2] in (TESTS / file).read_text(encoding="utf-8"), f"{file} does not name {key}"
