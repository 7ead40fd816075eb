"""FlexiViT against big_vision's golden outputs and timm's own forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kit.golden import FOLDER, PAPER_PATCHES, golden, largest_difference, oihw
from timm.layers import resample_patch_embed
from timm.models.vision_transformer import VisionTransformer

from flexiclip.config import ImageTowerConfig
from flexiclip.errors import UserError
from flexiclip.formats.big_vision_reader import image_tower_state, read_npz, split_head
from flexiclip.models.flexivit import FlexiViT

Head = dict[str, torch.Tensor]


def released(pool: str) -> tuple[FlexiViT, Head]:
    """The tower and the head that the golden parameters describe."""
    arrays, head = split_head(read_npz(FOLDER / f"flexivit_{pool}_params.npz"))
    tower = FlexiViT(ImageTowerConfig(width=64, depth=2, heads=4, mlp_dim=128, pool=pool))  # type: ignore[arg-type]
    tower.load_state_dict(image_tower_state(arrays))
    return tower.eval(), head


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return golden("flexivit_input")["image"].permute(0, 3, 1, 2).contiguous()


@pytest.mark.parametrize(("pool", "patch"), [("gap", p) for p in PAPER_PATCHES if p != 10] + [("map", 16), ("map", 48)])
@torch.no_grad()
def test_equals_big_vision(pool: str, patch: int, images: torch.Tensor) -> None:
    tower, head = released(pool)
    expected = golden(f"flexivit_{pool}_outputs")
    features = tower(images, seqhw=240 // patch)
    assert largest_difference(features, expected[f"p{patch}_pre_logits"]) < 2e-5
    assert largest_difference(F.linear(features, head["weight"], head["bias"]), expected[f"p{patch}_logits"]) < 2e-5
    assert torch.equal(tower(images, patch_size=patch), features), "a patch size is another name for the same length"


@pytest.mark.parametrize("patch", [16, 30, 48])
@torch.no_grad()
def test_every_stage_equals_big_vision(patch: int, images: torch.Tensor) -> None:
    tower, _ = released("gap")
    expected, side = golden("flexivit_gap_outputs"), 240 // patch
    stem = tower.embed_patches(images[:1], (side, side))
    rounding = 5e-6 * float(stem.abs().max())  # up to 6,912 products a sum, and values up to 28: relative to those
    assert largest_difference(stem.view(1, side, side, 64), expected[f"p{patch}_stem"]) < rounding
    placed = stem + tower.position_embedding((side, side))
    assert largest_difference(placed, expected[f"p{patch}_with_posemb"]) < rounding
    assert largest_difference(tower.forward_tokens(images[:1], side), expected[f"p{patch}_encoded"]) < 2e-5


@pytest.mark.parametrize("patch", [p for p in PAPER_PATCHES if p != 10])
@torch.no_grad()
def test_the_resized_kernel_equals_big_vision(patch: int) -> None:
    tower, _ = released("gap")
    found = tower.resize_kernel(tower.kernel, (patch, patch))[:4]
    assert largest_difference(found, oihw(golden("flexivit_gap_outputs")[f"p{patch}_w_emb"])) < 2e-5


@torch.no_grad()
def test_class_token_equals_timm() -> None:
    torch.manual_seed(0)
    theirs = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=64, depth=3, num_heads=4, num_classes=0, global_pool="token", no_embed_class=True
    ).eval()
    for parameter in theirs.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    state = dict(theirs.state_dict())
    state["kernel"], state["bias"] = state.pop("patch_embed.proj.weight"), state.pop("patch_embed.proj.bias")
    state["posemb"] = state.pop("pos_embed").transpose(1, 2).reshape(1, 64, 4, 4)
    state["cls"] = state.pop("cls_token")
    config = ImageTowerConfig(
        width=64, depth=3, heads=4, image_size=32, base_patch_size=8, base_grid=4, pool="tok", activation="gelu"
    )
    ours = FlexiViT(config).eval()
    ours.load_state_dict(state)
    images = torch.randn(2, 3, 32, 32)
    assert largest_difference(ours(images), theirs(images)) < 1e-5
    assert largest_difference(ours.forward_tokens(images), theirs.forward_features(images)) < 1e-5


@torch.no_grad()
def test_rectangles_equal_the_square_cut_out_of_them() -> None:
    """Patch embeddings are local: those of a 48 x 96 image are those of its two squares side by side."""
    config = ImageTowerConfig(width=32, depth=1, heads=2, image_size=(48, 96), base_patch_size=16, base_grid=(4, 8))
    tower = FlexiViT(config)
    images = torch.randn(2, 3, 48, 96, generator=torch.Generator().manual_seed(0))
    for grid in ((3, 6), (6, 12), (4, 6)):  # the last with patches of 12 x 16 pixels
        wide = tower.embed_patches(images, grid).unflatten(1, grid)
        left, right = (tower.embed_patches(half, (grid[0], grid[1] // 2)) for half in images.split(48, dim=3))
        halves = [x.unflatten(1, (grid[0], grid[1] // 2)) for x in (left, right)]
        assert largest_difference(wide, torch.cat(halves, dim=2)) < 1e-6
    assert tower(images, seqhw=(3, 6)).shape == (2, 32)
    assert tower.default_seqhw() == (3, 6)


def test_lengths_that_do_not_divide_name_those_that_do() -> None:
    tower = FlexiViT(ImageTowerConfig(width=16, depth=1, heads=2, image_size=60, base_patch_size=16))
    images = torch.zeros(1, 3, 60, 60)
    with pytest.raises(UserError, match=r"seqhw=7 does not divide.*valid seqhw: \[1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60\]"):
        tower(images, 7)
    with pytest.raises(UserError, match="patch_size=13 does not divide"):
        tower(images, patch_size=13)
    with pytest.raises(UserError, match="not both"):
        tower(images, 5, 12)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@torch.no_grad()
def test_kernel_and_grid_are_resized_as_their_settings_say(mode: str, antialias: bool) -> None:
    """Each by its own two settings: timm's resample_patch_embed and torch's interpolate, at lengths with and without a buffer."""
    for kernel, grid in (((mode, antialias), ("bicubic", True)), (("bicubic", True), (mode, antialias))):
        names = ("kernel_resize", "kernel_antialias", "grid_resize", "grid_antialias")
        settings: dict[str, Any] = dict(zip(names, (*kernel, *grid), strict=True))
        tower = FlexiViT(ImageTowerConfig(width=8, depth=1, heads=1, image_size=140, base_patch_size=16, base_grid=7, **settings))
        for side in (2, 7, 10, 14):  # patches of 70 (above the buffers), 20, 14 and 10 pixels
            expected = resample_patch_embed(tower.kernel, [140 // side] * 2, interpolation=kernel[0], antialias=kernel[1])
            found = tower.resize_kernel(tower.kernel, (140 // side, 140 // side))
            assert largest_difference(found, expected) < 3e-5
            how = {"mode": grid[0], "antialias": grid[1], "align_corners": False}
            resized = F.interpolate(tower.posemb, (side, side), **how).flatten(2).transpose(1, 2)
            assert largest_difference(tower.position_embedding((side, side)), resized) < 1e-5


@pytest.mark.parametrize(
    ("settings", "image", "expected"),
    [
        ({"image_size": 240, "base_patch_size": 32}, None, 8),  # 7.5 cells
        ({"image_size": 60, "base_patch_size": 24}, None, 2),  # 2.5 cells: 2 and 3 are equally near
        ({"image_size": 36, "base_patch_size": 24}, None, 1),  # 1.5 cells
        ({"image_size": 60, "base_patch_size": 24}, (120, 120), 5),  # another image than the configured one
        ({"image_size": (60, 36), "base_patch_size": 24}, None, (2, 1)),
        ({"image_size": 60, "base_patch_size": (24, 15)}, None, (2, 4)),
        ({"image_size": 60, "base_patch_size": 24, "default_seqhw": 6}, None, 6),
        ({"image_size": 60, "base_patch_size": 24, "flexible": "stride"}, None, 3),  # 2 would leave 6 pixels out
    ],
)
def test_default_seqhw_is_the_nearest_valid_one_and_of_two_the_shorter(
    settings: dict[str, Any], image: tuple[int, int] | None, expected: int | tuple[int, int]
) -> None:
    tower = FlexiViT(ImageTowerConfig(width=16, depth=1, heads=2, **settings))
    assert tower.default_seqhw(image) == expected
    grid = (expected, expected) if isinstance(expected, int) else expected
    assert tower.grid_of(image or tower.image_size) == grid, "the length that is taken where none is asked for"


@torch.no_grad()
def test_bfloat16_autocast_leaves_the_resize_in_float32() -> None:
    tower, _ = released("gap")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kernel = tower.resize_kernel(tower.kernel, (20, 20))
        grid = tower.position_embedding((12, 12))
    assert kernel.dtype == grid.dtype == torch.float32
    assert largest_difference(kernel[:4], oihw(golden("flexivit_gap_outputs")["p20_w_emb"])) < 2e-5


@torch.no_grad()
def test_no_module_remembers_a_length(images: torch.Tensor) -> None:
    """Both resizes start from the base parameters: a length computes the same whichever lengths ran before it."""
    tower, _ = released("gap")
    before = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    first = {seqhw: tower(images[:1], seqhw) for seqhw in (15, 5, 8)}
    for seqhw in (8, 15, 5, 15):
        assert torch.equal(tower(images[:1], seqhw), first[seqhw])
    assert all(torch.equal(tensor, before[name]) for name, tensor in tower.state_dict().items())


def test_a_round_trip_through_a_smaller_kernel_loses_information() -> None:
    """Why every length is resized from the base kernel."""
    tower, _ = released("gap")
    kernel = tower.kernel.detach()
    there = resample_patch_embed(kernel, [16, 16])
    back = resample_patch_embed(there, [32, 32])
    assert float((back - kernel).norm() / kernel.norm()) > 0.1
    assert largest_difference(tower.resize_kernel(kernel, (32, 32)), kernel) == 0
