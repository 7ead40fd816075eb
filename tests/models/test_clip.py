"""The two-tower model: locks, projections, lengths and the two scalars."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kit.golden import largest_difference
from torch import nn

from flexiclip.config import ImageTowerConfig, ModelConfig, TextTowerConfig
from flexiclip.errors import UserError
from flexiclip.models.clip import FlexiCLIP
from flexiclip.models.text import build_text_tower

IMAGE = ImageTowerConfig(width=32, depth=2, heads=2, image_size=48, base_patch_size=16, base_grid=3)
TEXT = TextTowerConfig(width=24, depth=1, heads=2, vocab_size=50, pad_id=0, eos_id=1, context_length=8)


def build(image: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **model: Any) -> FlexiCLIP:
    torch.manual_seed(0)
    config = ModelConfig(replace(IMAGE, **image or {}), replace(TEXT, **text or {}), **{"embed_dim": 16, **model})
    return FlexiCLIP(config, build_text_tower(config.text))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.tensor([[5, 6, 1, 0], [7, 1, 0, 0], [8, 9, 10, 1]])


def learners(model: FlexiCLIP, images: torch.Tensor, tokens: torch.Tensor) -> set[str]:
    """The top-level parts that a step in training mode gives gradients to; in each of them every parameter must have got one."""
    zimg, ztxt = model.train()(images, tokens, 4)
    (zimg * ztxt).sum().backward()
    parts = set()
    for part, module in model.named_children():
        got = [p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters()]
        assert all(got) or not any(got), part
        if any(got):
            parts.add(part)
    return parts


@pytest.mark.parametrize(
    ("image", "text", "expected"),
    [
        (False, False, {"image_tower", "text_tower"}),
        (True, False, {"text_tower"}),
        (False, True, {"image_tower"}),
        (True, True, set()),
    ],
)
def test_locks_leave_the_other_parts_to_train(
    image: bool, text: bool, expected: set[str], images: torch.Tensor, tokens: torch.Tensor
) -> None:
    model = build({"lock": image, "init": "x"}, {"lock": text, "init": "x"})
    assert learners(model, images, tokens) == expected | {"image_projection", "text_projection"}
    for part, locked in (("image_tower", image), ("text_tower", text)):
        tower = getattr(model, part)
        assert {m.training for m in tower.modules()} == {not locked}, "a locked tower stays in eval mode through train()"
        assert {p.requires_grad for p in tower.parameters()} == {not locked}
    assert model.image_projection.training
    assert not any(m.training for m in model.eval().modules())
    assert {m.training for m in model.train().image_tower.modules()} == {not image}


@pytest.mark.parametrize("pool", ["own", "map"])
@pytest.mark.parametrize("half", ["image", "text"])
def test_a_partly_locked_tower_trains_its_last_blocks(half: str, pool: str, images: torch.Tensor, tokens: torch.Tensor) -> None:
    pooled = {} if pool == "own" else {"pool": "map"}
    model = build(**{half: {"lock": True, "init": "x", "unlock_last": 1, **pooled}})
    zimg, ztxt = model.train()(images, tokens)
    (zimg * ztxt).sum().backward()
    tower = getattr(model, f"{half}_tower")
    depth = len(tower.blocks)
    opened = {name for name, p in tower.named_parameters() if p.grad is not None}
    after = (f"blocks.{depth - 1}.", "norm.", "map_head.")
    assert opened == {name for name, _ in tower.named_parameters() if name.startswith(after)}
    assert any(name.startswith("map_head.") for name in opened) == (pool == "map")
    assert tower.blocks[-1].training
    assert tower.norm.training
    assert not tower.training
    assert {block.training for block in tower.blocks[:-1]} <= {False}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lock": True, "init": "x", "unlock_last": 9}, "model.image.unlock_last=9 exceeds the tower's 2 blocks"),
        ({"unlock_last": 1}, "model.image.unlock_last=1 opens blocks of a locked tower: set model.image.lock=true"),
        ({"lock": True, "init": "x", "unlock_last": -1}, "model.image.unlock_last=-1 must be 0 or more"),
    ],
)
def test_what_cannot_be_unlocked_is_said(settings: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build(settings)


def test_a_locked_tower_builds_no_graph(images: torch.Tensor, tokens: torch.Tensor) -> None:
    locked = build({"lock": True, "init": "x", "width": 16, "projection": "none"}, {"lock": True, "init": "x"})
    assert not locked.encode_image(images.requires_grad_()).requires_grad
    assert locked.encode_text(tokens).requires_grad  # its projection trains
    with torch.no_grad():
        assert not build().encode_image(images).requires_grad


@torch.no_grad()
def test_projections_map_into_the_joint_space(images: torch.Tensor, tokens: torch.Tensor) -> None:
    model = build({"projection_bias": True}).eval()
    assert model.image_projection.bias.tolist() == [0.0] * 16
    assert model.text_projection.bias is None
    expected = model.image_tower(images) @ model.image_projection.weight.T
    assert largest_difference(model.encode_image(images), expected) < 1e-6
    expected = model.text_tower(tokens) @ model.text_projection.weight.T
    assert largest_difference(model.encode_text(tokens), expected) < 1e-6
    bare = build({"projection": "none", "width": 16}, {"projection": "none", "width": 16}).eval()
    assert isinstance(bare.image_projection, nn.Identity)
    assert torch.equal(bare.encode_image(images), bare.image_tower(images))
    assert torch.equal(bare.encode_text(tokens), bare.text_tower(tokens))


@pytest.mark.parametrize("half", ["image", "text"])
def test_no_projection_needs_equal_widths(half: str) -> None:
    width = {"image": 32, "text": 24}[half]
    with pytest.raises(UserError, match=rf"model\.{half}\.projection=none needs model\.embed_dim=16 .* width {width}$"):
        build(**{half: {"projection": "none"}})
    build(**{half: {"projection": "none"}, "embed_dim": width})


@torch.no_grad()
def test_every_length_by_grid_side_and_by_patch_size(images: torch.Tensor, tokens: torch.Tensor) -> None:
    model = build().eval()
    found = {s: model.encode_image(images, s) for s in (2, 3, 4, 6, 8)}
    for s, z in found.items():
        assert z.shape == (3, 16)
        assert torch.equal(model.encode_image(images, patch_size=48 // s), z)
        assert largest_difference(model.encode_image(images, s, normalize=True), F.normalize(z, dim=1)) < 1e-6
        zimg, ztxt = model(images, tokens, s)
        assert torch.equal(zimg, model.encode_image(images, seqhw=s, normalize=True))
        assert torch.equal(ztxt, model.encode_text(tokens, normalize=True))
        assert torch.allclose(torch.stack([zimg.norm(dim=1), ztxt.norm(dim=1)]), torch.ones(2, 3))
    assert torch.equal(model.encode_image(images), found[3]), "by default that of the base kernel, 48 / 16"
    assert min(largest_difference(found[3], z) for s, z in found.items() if s != 3) > 1e-3
    with pytest.raises(UserError, match="valid seqhw"):
        model.encode_image(images, 5)


@torch.no_grad()
def test_unit_rows_are_float32_under_autocast(images: torch.Tensor, tokens: torch.Tensor) -> None:
    model = build().eval()
    exact = model(images, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(images, tokens)
    for a, b in zip(exact, rough, strict=True):
        assert b.dtype == torch.float32
        assert (b.norm(dim=1) - 1).abs().max() < 1e-6
        assert 0 < largest_difference(a, b) < 0.03


def test_scalars_start_where_the_config_says() -> None:
    clip = build()
    assert clip.logit_scale.shape == (1,)
    assert clip.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert clip.logit_bias is None
    assert clip.scalars() == [clip.logit_scale]
    siglip = build(logit_scale_init=10.0, logit_bias_init=-10)
    assert siglip.logit_scale.item() == pytest.approx(math.log(10))
    assert siglip.logit_bias is not None
    assert siglip.logit_bias.tolist() == [-10.0]
    assert siglip.scalars() == [siglip.logit_scale, siglip.logit_bias]
    assert set(siglip.state_dict()) - set(clip.state_dict()) == {"logit_bias"}
