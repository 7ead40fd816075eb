"""PI-resize and the position grid's resize against big_vision's arrays and timm's full pseudo-inverse."""

from __future__ import annotations

import pytest
import timm.layers
import torch
import torch.nn.functional as F
from kit.golden import PAPER_PATCHES, golden, largest_difference, oihw
from torch._subclasses.fake_tensor import FakeTensorMode

import flexiclip.models.pi_resize as pi
from flexiclip.models.flexivit import FlexiViT


@pytest.mark.parametrize("size", PAPER_PATCHES)
def test_equals_big_vision_from_base_32(size: int) -> None:
    arrays = golden("pi_resize")
    assert largest_difference(pi.pi_resize(oihw(arrays["w32"]), size), oihw(arrays[f"w{size}"])) < 2e-5


@pytest.mark.parametrize("size", [(8, 8), (14, 14), (16, 16), (30, 30), (32, 32), (12, 14), (20, 24), (16, 12)])
def test_equals_big_vision_from_base_16(size: tuple[int, int]) -> None:
    arrays = golden("pi_resize")
    name = f"b16_w{size[0]}" if size[0] == size[1] else f"b16_w{size[0]}x{size[1]}"
    assert largest_difference(pi.pi_resize(oihw(arrays["b16_w16"]), size), oihw(arrays[name])) < 2e-5


def full_pseudo_inverse(kernel: torch.Tensor, size: tuple[int, int], mode: str, antialias: bool) -> torch.Tensor:
    """PI-resize by the definition: one matrix over both axes, float32 weights as images are resized with, inverted in float64.

    Where one axis grows and the other shrinks, that matrix has no full rank: singular values of the size of rounding are zeros.
    """
    height, width = kernel.shape[-2:]
    basis = torch.eye(height * width).view(-1, 1, height, width)
    resize = F.interpolate(basis, size=size, mode=mode, antialias=antialias, align_corners=False).flatten(1).double()
    return (kernel.flatten(2) @ torch.linalg.pinv(resize.T, rtol=1e-5)).unflatten(2, size)


@pytest.mark.parametrize("size", [(p, p) for p in PAPER_PATCHES] + [(12, 20), (40, 24)])
def test_equals_the_full_pseudo_inverse(size: tuple[int, int]) -> None:
    kernel = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = full_pseudo_inverse(kernel, size, "bilinear", antialias=False)
    assert largest_difference(pi.pi_resize(kernel, size), expected) < 1e-5


@pytest.mark.parametrize("size", [(6, 6), (8, 12), (15, 15), (16, 10), (20, 20), (24, 18)])
@pytest.mark.parametrize(("mode", "antialias"), [("bilinear", False), ("bicubic", True)])
def test_pi_resize_equals_timm(size: tuple[int, int], mode: str, antialias: bool) -> None:
    kernel = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = timm.layers.resample_patch_embed(kernel, list(size), interpolation=mode, antialias=antialias)
    assert largest_difference(pi.pi_resize(kernel, size, mode, antialias), expected) < 2e-5


@pytest.mark.parametrize("size", [24, 40])
def test_resized_patches_keep_their_embeddings_when_enlarged(size: int) -> None:
    """The definition (section 3.4): <x, w> = <resize(x), pi_resize(w)> for every patch x when the patch grows."""
    generator = torch.Generator().manual_seed(1)
    kernel, patches = torch.randn(5, 3, 16, 16, generator=generator), torch.randn(7, 3, 16, 16, generator=generator)
    enlarged = F.interpolate(patches, size=(size, size), mode="bilinear", align_corners=False)
    found = enlarged.flatten(1) @ pi.pi_resize(kernel, size).flatten(1).T
    assert largest_difference(found, patches.flatten(1) @ kernel.flatten(1).T) < 2e-4  # sums of 768 products of size 1


def test_gradients_pass_and_autocast_does_not_round() -> None:
    kernel = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(2))
    assert torch.autograd.gradcheck(lambda k: pi.pi_resize(k, (6, 10)), kernel)
    single = kernel.detach().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = pi.pi_resize(single, 6)
    assert torch.equal(inside, pi.pi_resize(single, 6))


def test_a_kernel_that_is_not_four_dimensional_is_refused() -> None:
    with pytest.raises(ValueError, match="must be"):
        pi.pi_resize(torch.zeros(3, 8, 8), 4)


@pytest.mark.parametrize("side", [5, 6, 8, 15, 30])
def test_position_grid_equals_big_vision(side: int) -> None:
    arrays = golden("posemb_resize")
    grid = arrays["posemb_7x7"].permute(0, 3, 1, 2)
    matrix = pi.interpolation_matrix(7, side, antialias=True)
    assert largest_difference(pi.resize_axes(grid, matrix, matrix).permute(0, 2, 3, 1), arrays[f"to_{side}x{side}"]) < 2e-5


def test_held_matrices_survive_casts_and_are_not_saved() -> None:
    resize = pi.AxisResize(pi.pi_matrix, (16, 16), {8}, {8})
    assert resize.state_dict() == {}
    kernel = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    for size in ((8, 8), (8, 12), (16, 16)):  # held, one built on demand, unchanged
        assert largest_difference(resize.bfloat16()(kernel, size), pi.pi_resize(kernel, size)) == 0
    empty = resize.to("meta").to_empty(device="cpu")
    assert largest_difference(empty(kernel, (8, 8)), pi.pi_resize(kernel, 8)) == 0


def test_the_tower_holds_the_matrix_of_every_paper_length() -> None:
    from flexiclip.config import ImageTowerConfig

    tower = FlexiViT(ImageTowerConfig(width=16, depth=1, heads=2))
    held = set(tower.resize_kernel._buffers)
    assert {f"from32to{size}" for size in PAPER_PATCHES} <= held
    assert sum(b.numel() for b in tower.resize_kernel.buffers()) * 4 < 64_000, "kilobytes, not the megabytes of a full inverse"


def test_the_matrix_of_an_axis_takes_6_kb_where_the_full_inverse_takes_9_mb() -> None:
    """docs/explanation/design.md, for the largest patch of the paper."""
    assert pi.pi_matrix(32, 48).nbytes == 6 * 2**10
    assert 4 * 48**2 * 32**2 == 9 * 2**20  # one float32 matrix from 32 x 32 to 48 x 48 pixels


def test_held_matrices_are_those_of_each_axis_and_built_once() -> None:
    built = []

    def recorded(old: int, new: int) -> torch.Tensor:
        built.append((old, new))
        return pi.pi_matrix(old, new)

    resize = pi.AxisResize(recorded, (16, 12), {8}, {6, 24})
    assert sorted(built) == [(12, 6), (12, 24), (16, 8)]
    kernel = torch.randn(2, 3, 16, 12, generator=torch.Generator().manual_seed(4))
    for size in ((8, 6), (8, 24)):
        assert torch.equal(resize(kernel, size), pi.pi_resize(kernel, size))
    assert len(built) == 3, "the held ones are used"
    assert torch.equal(resize(kernel, (20, 10)), pi.pi_resize(kernel, (20, 10)))
    assert built[3:] == [(16, 20), (12, 10)], "others are built when they are asked for"
    cast = {name: buffer.dtype for name, buffer in resize.bfloat16().named_buffers()}
    assert cast == dict.fromkeys(("from16to8", "from12to6", "from12to24"), torch.float32)


def test_matrices_are_on_the_cpu_whatever_device_is_in_force_and_follow_the_kernel() -> None:
    pi.pi_matrix.cache_clear()
    with torch.device("meta"):
        for matrix in (pi.pi_matrix(9, 9), pi.pi_matrix(9, 4), pi.interpolation_matrix(9, 9), pi.interpolation_matrix(9, 4)):
            assert matrix.device.type == "cpu"
    signal = torch.randn(1, 1, 9, generator=torch.Generator().manual_seed(5))
    for size in (4, 9, 20):  # the plain resize of torch, by default without antialiasing
        expected = F.interpolate(signal, size=size, mode="linear", align_corners=False)
        assert largest_difference(signal @ pi.interpolation_matrix(9, size).T, expected) < 1e-6


def test_the_matrices_are_used_on_the_device_of_the_kernel() -> None:
    """Fake tensors know their device without a GPU, and refuse a product over two devices."""
    resize = pi.AxisResize(pi.pi_matrix, (16, 16), {8}, {8})
    for new in (8, 12):  # real matrices, which the cache holds from here on
        pi.pi_matrix(16, new)
        pi.pi_matrix(16, new, "bilinear", False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        kernel = torch.empty(2, 3, 16, 16, device="cuda")
        assert pi.pi_resize(kernel, (8, 12)).device.type == "cuda"
        assert resize(kernel, (12, 12)).device.type == "cuda"
        assert [buffer.device.type for buffer in resize.to("cuda").buffers()] == ["cuda"]


def test_pi_resize_of_half_precision_rounds_once_at_the_end() -> None:
    kernel = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(6)).bfloat16()
    found = pi.pi_resize(kernel, (8, 24))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, pi.pi_resize(kernel.float(), (8, 24)).bfloat16())
