"""A flexible depth: a tower left after a block is a tower of that depth, with the tower's head or one of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flexiclip.config import ImageTowerConfig, ModelConfig, TextTowerConfig
from flexiclip.errors import UserError
from flexiclip.models.clip import FlexiCLIP
from flexiclip.models.exits import bake, leave_after
from flexiclip.models.flexivit import FlexiViT
from flexiclip.models.flops import image_model_flops
from flexiclip.models.pi_resize import pi_resize
from flexiclip.models.text import build_text_tower

TEXT = TextTowerConfig(width=16, depth=1, heads=2, vocab_size=8, pad_id=0, eos_id=1, context_length=4)
IMAGE = ImageTowerConfig(width=16, depth=4, heads=2, image_size=24, base_patch_size=8, base_grid=3, exits=(1, 3))


def model_of(**image: Any) -> FlexiCLIP:
    torch.manual_seed(0)
    model = FlexiCLIP(ModelConfig(replace(IMAGE, **image), TEXT, embed_dim=8), build_text_tower(TEXT)).eval()
    with torch.no_grad():
        for p in model.parameters():  # norms too must differ from one another
            p.add_(0.3 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("heads", ["shared", "separate"])
@pytest.mark.parametrize("pool", ["tok", "gap", "map"])
@torch.no_grad()
def test_an_exit_is_a_tower_of_that_depth(pool: str, heads: str) -> None:
    """Built by hand: the first blocks of the state, and whichever head is the exit's."""
    model, images = model_of(pool=pool, exit_heads=heads), torch.randn(3, 3, 24, 24)
    found = model.project_exits(model.image_tower.forward_exits(images, 4))
    state = model.image_tower.state_dict()
    for number, depth in enumerate((1, 3)):
        plain = FlexiViT(replace(model.config.image, depth=depth, exits=(), exit_heads="shared")).eval()
        mine = {name: state[name] for name in plain.state_dict()}
        projection = model.image_projection.weight
        if heads == "separate":
            for name in mine:
                own = name.replace("norm.", f"exit_norms.{number}.") if name.startswith("norm.") else name
                own = name.replace("map_head.", f"exit_map_heads.{number}.") if name.startswith("map_head.") else own
                mine[name] = state[own]
            projection = model.exit_projections[number].weight
        plain.load_state_dict(mine)
        expected = torch.nn.functional.normalize(plain(images, 4) @ projection.T, dim=1)
        assert torch.allclose(found[number], expected, atol=1e-5)
        left = leave_after(model, depth, "m")
        assert torch.allclose(left.encode_image(images, 4, normalize=True), expected, atol=1e-5)
        assert len(left.image_tower.blocks) == left.config.image.depth == depth
        assert left.config.image.exits == ()
        assert image_model_flops(left.config, 4) == image_model_flops(replace(model.config, image=plain.config), 4)
    whole = model.encode_image(images, 4, normalize=True)
    assert torch.allclose(found[-1], whole, atol=1e-5)
    assert torch.equal(leave_after(model, 4, "m").encode_image(images, 4, normalize=True), whole)
    assert {name for name, _ in model.named_parameters() if "exit" in name} == (
        {name for name in model.state_dict() if "exit" in name} if heads == "separate" else set()
    )


def test_a_separate_head_has_parameters_of_its_own() -> None:
    names = {name.split(".")[0] for name in model_of(exit_heads="separate", pool="map").image_tower.state_dict()}
    assert {"exit_norms", "exit_map_heads"} <= names
    plain = FlexiViT(replace(IMAGE, exits=()))
    assert plain.state_dict().keys() == FlexiViT(IMAGE).state_dict().keys(), "shared ones have none"


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ({"exits": (1, 4)}, r"exits=\[1, 4\] must lie before the last of the tower's 4 blocks"),
        ({"exits": (2, 1)}, r"exits=\[2, 1\] must be numbers of blocks, each above"),
        ({"exits": (0,)}, r"exits=\[0\] must be numbers of blocks"),
        ({"lock": True, "init": "m"}, r"exits=\[1, 3\] need a tower that trains"),
    ],
)
def test_exits_that_cannot_be(image: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        model_of(**image)


def test_leave_after_keeps_the_text_half_and_the_scalars(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ModelConfig(replace(IMAGE, pool="map"), TEXT, embed_dim=8, logit_bias_init=-3.0)
    model = FlexiCLIP(config, build_text_tower(TEXT))
    left = leave_after(model, 1, "m")
    assert left.logit_scale is model.logit_scale
    assert left.logit_bias is model.logit_bias
    assert left.text_tower is model.text_tower
    assert left.text_projection is model.text_projection
    tokens = torch.tensor([[5, 6, 1, 0]])
    assert torch.equal(left.encode_text(tokens), model.encode_text(tokens))
    assert not any(module.training for module in left.modules())
    assert {p.device.type for p in left.parameters()} == {"cpu"}, "none is left on the meta device"


def test_a_depth_that_is_no_exit() -> None:
    with pytest.raises(UserError, match=r"m\+exit2: .* after block 2 of 4: its exits are 1, 3"):
        leave_after(model_of(), 2, "m+exit2")
    with pytest.raises(UserError, match=r"it was trained without model\.image\.exits"):
        leave_after(model_of(exits=()), 2, "m")


def test_a_baked_tower_is_a_plain_one() -> None:
    tower = model_of().image_tower
    before = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    baked = bake(tower, 4)
    assert torch.allclose(baked.kernel, pi_resize(tower.kernel, 6), atol=1e-6)
    assert baked.posemb.shape == (1, 16, 4, 4)
    assert (baked.config.base_patch_size, baked.config.base_grid) == ((6, 6), (4, 4))
    assert all(torch.equal(tensor, before[name]) for name, tensor in tower.state_dict().items()), "the model is left alone"
