"""Each key of the section `model` changes what the towers compute, what of them trains, or where they start."""

from __future__ import annotations

import math

import pytest
import torch
from kit.launch import Trained
from kit.overrides import load_last
from kit.train_shards import sample
from torch import Tensor, nn

from flexiclip.config import Config
from flexiclip.model_folder import LoadedModel, build_model
from flexiclip.train.towers import Towers

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
    config = load_last([*recipe, *overrides])
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
    found = [part for seqhw in LENGTHS if seqhw in config.patch.seqhw for part in Towers(loaded.model)(images, tokens, seqhw)]
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
    model = build_model(load_last([*recipe, "seed=5", *given])).model
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
    model = build_model(load_last([*recipe, *given])).model
    assert model.logit_scale.item() == pytest.approx(math.log(20))
    assert model.logit_bias is not None
    assert model.logit_bias.item() == -7.5
    names = ["red", "green", "blue"]
    config = load_last([*recipe, *CLASSIFY, f"model.classes=[{','.join(names)}]", "model.head_bias_init=-4"])
    loaded = build_model(config)
    head = loaded.model.image_projection
    assert isinstance(head, nn.Linear)
    assert head.bias.tolist() == [-4.0] * 3
    assert not head.weight.any()
    assert loaded.config.model.classes == tuple(names)
