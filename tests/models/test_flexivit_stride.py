"""A flexible stride: overlapping patches against TF's padding and by hand; FLOPs; lengths that are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed, conv2d_same
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from flexiclip.config import Config, ImageTowerConfig, from_dict
from flexiclip.config.validate import valid_seqhw, validate
from flexiclip.errors import UserError
from flexiclip.export.write_model import export_model
from flexiclip.model_folder import build_model, load_model, save_model
from flexiclip.models.exits import bake
from flexiclip.models.flexivit import FlexiViT
from flexiclip.models.flops import image_flops

SMALL = ImageTowerConfig(
    width=16, depth=1, heads=2, image_size=24, base_patch_size=8, base_grid=3, flexible="stride", exits=(), patch_bias=True
)


def tower_of(config: ImageTowerConfig = SMALL) -> FlexiViT:
    torch.manual_seed(0)
    tower = FlexiViT(config).eval()
    with torch.no_grad():
        assert tower.bias is not None
        tower.bias.normal_()
    return tower


def middles(size: int, kernel: int, cells: int) -> Tensor:
    """[cells, size]: which pixels a kernel sees, one that lies over the middle of its cell or half a pixel further down."""
    cell = size / cells
    middle = torch.arange(cells)[:, None] * cell + cell / 2 + (0.5 if (kernel - cell) % 2 else 0.0)
    pixels = torch.arange(size)[None] + 0.5
    return ((pixels - middle).abs() < kernel / 2).double()


@pytest.mark.parametrize(
    ("size", "kernel", "grid"),
    [
        ((24, 24), (8, 8), (3, 3)),
        ((24, 24), (8, 8), (4, 4)),
        ((24, 24), (8, 8), (12, 12)),
        ((24, 30), (9, 5), (8, 6)),
        ((24, 24), (24, 24), (1, 1)),
        ((24, 24), (7, 7), (6, 6)),  # from here on kernel and cell differ by an odd number of pixels
        ((24, 30), (9, 6), (12, 10)),
        ((24, 30), (8, 6), (8, 5)),  # in one direction
        ((240, 240), (32, 32), (16, 16)),  # the kernel that the recipes have, at a length that they have
        ((60, 60), (32, 32), (12, 12)),
    ],
)
@torch.no_grad()
def test_overlapping_patches_are_padded_as_tensorflow_pads_for_same(
    size: tuple[int, int], kernel: tuple[int, int], grid: tuple[int, int]
) -> None:
    """timm's conv2d_same, which is TF's; and with a kernel of ones, each token is the sum of the pixels that it sees."""
    tower = tower_of(replace(SMALL, image_size=size, base_patch_size=kernel))
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    cell = (size[0] // grid[0], size[1] // grid[1])
    expected = conv2d_same(images, tower.kernel, tower.bias, stride=cell).flatten(2).transpose(1, 2)
    found = tower.embed_patches(images, grid)
    assert found.shape == (2, grid[0] * grid[1], 16)
    assert (found - expected).abs().max() < 2e-5
    assert tower(images, grid).shape == (2, 16)

    tower.kernel.fill_(1.0)
    rows, columns = (middles(*each) for each in zip(size, kernel, grid, strict=True))
    sums = (rows @ images.double().sum(1) @ columns.T).flatten(1)[..., None] + tower.bias
    assert (tower.embed_patches(images, grid) - sums).abs().max() < 1e-3


@torch.no_grad()
def test_overlapping_patches_by_hand() -> None:
    """Six pixels, a kernel of three, a stride of two: the one pixel of padding is below and to the right."""
    tower = tower_of(replace(SMALL, image_size=6, base_patch_size=3, base_grid=2))
    tower.kernel.fill_(1.0)
    found = tower.embed_patches(torch.ones(1, 3, 6, 6), (3, 3))[0] - tower.bias
    by_hand = torch.tensor([[27.0, 27, 18], [27, 27, 18], [18, 18, 12]])
    assert torch.allclose(found.T, by_hand.flatten().expand(16, 9), atol=1e-5)


@torch.no_grad()
def test_side_by_side_it_is_a_plain_vit() -> None:
    """At the length where stride and kernel are one, the tower is that of flexible patches, and timm's embedding."""
    tower, images = tower_of(), torch.randn(2, 3, 24, 24)
    plain = FlexiViT(replace(SMALL, flexible="patch")).eval()
    plain.load_state_dict(tower.state_dict())
    assert torch.allclose(tower(images, 3), plain(images, 3), atol=1e-5)
    embed = PatchEmbed(img_size=24, patch_size=8, embed_dim=16)
    embed.proj.weight.copy_(tower.kernel)
    embed.proj.bias.copy_(tower.bias)
    assert torch.allclose(tower.embed_patches(images, (3, 3)), embed(images), atol=1e-5)
    assert not torch.allclose(tower(images, 6), plain(images, 6), atol=1e-3)
    even = F.conv2d(F.pad(images, (2, 2, 2, 2)), tower.kernel, tower.bias, stride=4)  # a cell of 4, a kernel of 8
    assert torch.allclose(tower.embed_patches(images, (6, 6)), even.flatten(2).transpose(1, 2), atol=1e-5)


@pytest.mark.parametrize("seqhw", [3, 4, 6, 12])
def test_flops_of_overlapping_patches(seqhw: int) -> None:
    tower = tower_of()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tower.embed_patches(torch.zeros(1, 3, 24, 24), (seqhw, seqhw))
    assert image_flops(SMALL, seqhw).stem == counter.get_total_flops()
    assert image_flops(SMALL, 3).stem == image_flops(replace(SMALL, flexible="patch"), 3).stem


def test_lengths_that_leave_gaps_are_refused() -> None:
    tower, images = tower_of(), torch.zeros(1, 3, 24, 24)
    with pytest.raises(UserError, match=r"seqhw=2 leaves gaps between kernels of 8 pixels .*valid: \[3, 4, 6, 8, 12, 24\]"):
        tower(images, 2)
    with pytest.raises(UserError, match=r"seqhw=5 does not divide .*valid seqhw: \[3, 4, 6, 8, 12, 24\]"):
        tower(images, 5)
    assert valid_seqhw((24, 30), (8, 5)) == [6]
    assert tower.default_seqhw() == 3
    assert tower_of(replace(SMALL, base_patch_size=11)).default_seqhw() == 3, "12 pixels are nearer to 11, but leave one out"
    config = from_dict(Config, {"model": {"image": {"flexible": "stride"}}, "patch": {"seqhw": [6, 8]}})
    with pytest.raises(UserError, match=r"patch.seqhw: \[6\] do not divide .*, or leave gaps between kernels of 32 pixels"):
        validate(config)


def test_a_model_folder_keeps_it_and_other_formats_refuse_it(tmp_path: Path) -> None:
    image = {"width": 16, "depth": 1, "heads": 2, "image_size": 24, "base_patch_size": 8, "base_grid": 3, "flexible": "stride"}
    text = {"width": 16, "depth": 1, "heads": 2, "vocab_size": 50000}
    recipe = {"model": {"image": image, "text": text, "embed_dim": 8}, "tokenizer": {"kind": "clip"}, "patch": {"seqhw": [3, 6]}}
    loaded = build_model(from_dict(Config, recipe))
    loaded.model.eval()
    save_model(tmp_path / "model", loaded)
    images = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        expected = loaded.model.encode_image(images, 6)
        assert torch.equal(load_model(tmp_path / "model").model.encode_image(images, 6), expected)
        baked = bake(loaded.model.image_tower, 6)
        assert torch.allclose(baked(images), loaded.model.image_tower(images, 6), atol=1e-6)
    with pytest.raises(UserError, match="patches that overlap"):
        export_model(str(tmp_path / "model"), tmp_path / "out", "timm")
    plain = from_dict(
        Config, {**recipe, "model": {**recipe["model"], "image": {**image, "flexible": "patch", "init": str(tmp_path / "model")}}}
    )  # type: ignore[dict-item]
    with pytest.raises(UserError, match="its tower was trained with flexible=stride"):
        build_model(plain)
