"""FlexiViT against big_vision's golden outputs and timm's own forward pass.

A tower at other base sizes: the kernel by the full pseudo-inverse, the grid by torch's own resize, the rest as it was.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kit.golden import FOLDER, PAPER_PATCHES, golden, largest_difference, oihw
from safetensors.torch import save_file
from timm.layers import resample_patch_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from flexiclip.config import Config, ImageTowerConfig, from_dict
from flexiclip.errors import UserError
from flexiclip.formats.big_vision_reader import read_npz, read_tower
from flexiclip.formats.layouts import BIG_VISION_IMAGE
from flexiclip.formats.run import ImportOptions, import_weights
from flexiclip.model_folder import build_model, load_model
from flexiclip.models.flexivit import FlexiViT, own_patch, rebase

Head = dict[str, torch.Tensor]


def released(pool: str) -> tuple[FlexiViT, Head]:
    """The tower and the head that the golden parameters describe."""
    state, head = read_tower(read_npz(FOLDER / f"flexivit_{pool}_params.npz"), BIG_VISION_IMAGE)
    tower = FlexiViT(ImageTowerConfig(width=64, depth=2, heads=4, mlp_dim=128, pool=pool))  # type: ignore[arg-type]
    tower.load_state_dict(state)
    return tower.eval(), head


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return golden("flexivit_input")["image"].permute(0, 3, 1, 2).contiguous()


@pytest.mark.parametrize(("pool", "patch"), [("gap", p) for p in PAPER_PATCHES if p != 10] + [("map", 16), ("map", 48)])
@torch.no_grad()
def test_flexivit_equals_big_vision(pool: str, patch: int, images: torch.Tensor) -> None:
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


TINY = {"width": 32, "depth": 1, "heads": 2, "pool": "gap"}
FLEXIBLE = {**TINY, "image_size": 48, "base_patch_size": 16, "base_grid": 4}


def recipe(image: dict[str, object], seqhw: list[int], **more: object) -> Config:
    return from_dict(Config, {"model": {"image": image, "text": None, "embed_dim": 8, **more}, "patch": {"seqhw": seqhw}})


def full_pinv(kernel: Tensor, size: int) -> Tensor:
    """FlexiViT's equation 3 as it stands: pinv(B^T) over whole patches, B the bilinear resize, column by column."""
    old = kernel.shape[-1]
    basis = torch.eye(old * old).view(old * old, 1, old, old)
    resize = F.interpolate(basis, size=(size, size), mode="bilinear", align_corners=False).flatten(1).T  # [new^2, old^2]
    inverse = torch.linalg.pinv(resize.double().T)
    return (kernel.double().flatten(2) @ inverse.T).view(*kernel.shape[:2], size, size)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """timm's own ViT of patch 12 on 48 px, with random weights, imported."""
    import timm

    torch.manual_seed(0)
    options = {"img_size": 48, "patch_size": 12, "embed_dim": 32, "depth": 1, "num_heads": 2, "class_token": False}
    vit = timm.models.vision_transformer.VisionTransformer(**options, global_pool="avg", fc_norm=False, num_classes=8)
    for p in vit.parameters():
        p.data.normal_(std=0.2)
    folder = tmp_path_factory.mktemp("teacher")
    save_file(vit.state_dict(), folder / "vit.safetensors")
    import_weights(str(folder / "vit.safetensors"), "timm", folder / "model", ImportOptions(heads=2))
    return folder / "model"


def test_a_student_starts_from_its_teacher(teacher: Path) -> None:
    image = {**FLEXIBLE, "base_grid": 7, "activation": "gelu", "projection_bias": True, "init": str(teacher)}
    student = build_model(recipe(image, [3, 4, 6]))
    theirs, ours = load_model(teacher).model.state_dict(), student.model.state_dict()
    torch.testing.assert_close(
        ours["image_tower.kernel"].double(), full_pinv(theirs["image_tower.kernel"], 16), rtol=0, atol=1e-5
    )
    grid = F.interpolate(theirs["image_tower.posemb"], size=(7, 7), mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(ours["image_tower.posemb"], grid, rtol=0, atol=1e-6)
    rest = ours.keys() - {"image_tower.kernel", "image_tower.posemb", "logit_scale"}
    assert all(torch.equal(ours[name], theirs[name]) for name in rest)
    assert any(name.startswith("image_projection") for name in rest)
    notes = student.provenance["init_notes"]
    assert [note.partition(": ")[2] for note in notes] == [
        "the patch kernel PI-resized from 12x12 to 16x16",
        "the position grid resampled from 4x4 to 7x7",
    ]


def staged(config: Config, *stages: dict[str, object], weights: list[float] | None = None) -> Config:
    """The recipe with a curriculum in stages, and other weights before the first of them."""
    given = {"seqhw": list(config.patch.seqhw), "weights": weights or "uniform", "stages": list(stages)}
    return replace(config, patch=from_dict(Config, {"patch": given}).patch)


def fixed(tmp_path: Path, *stages: dict[str, object], **image: object) -> tuple[Path, Tensor]:
    """A model folder that was trained at 4 alone, patches of 12 px, with a base kernel of 16, and that kernel."""
    from flexiclip.model_folder import save_model

    loaded = build_model(staged(recipe({**FLEXIBLE, **image}, [4]), *stages))
    save_model(tmp_path / "fixed", loaded)
    return tmp_path / "fixed", loaded.model.image_tower.kernel.detach()


def test_of_one_length_the_kernel_that_was_trained_is_taken(tmp_path: Path) -> None:
    folder, kernel = fixed(tmp_path)
    student = build_model(recipe({**FLEXIBLE, "init": str(folder)}, [3, 4, 6]))
    wanted = full_pinv(full_pinv(kernel, 12).float(), 16)
    torch.testing.assert_close(student.model.image_tower.kernel.detach().double(), wanted, rtol=0, atol=1e-5)


STAGE = {"start": "50%", "seqhw": [3, 4, 6]}


@pytest.mark.parametrize("ours", ["the same stages", "the same lengths", "other lengths"])
def test_init_of_a_tower_that_stages_trained_at_several_lengths_copies_it(tmp_path: Path, ours: str) -> None:
    """patch.seqhw names one length and its stages more: the whole base kernel is trained, and PI-resizing it would lose it."""
    folder, kernel = fixed(tmp_path, STAGE)
    image = {**FLEXIBLE, "init": str(folder)}
    config = recipe(image, {"the same stages": [4], "the same lengths": [3, 4, 6], "other lengths": [2, 8]}[ours])
    student = build_model(staged(config, STAGE) if ours == "the same stages" else config)
    assert torch.equal(student.model.image_tower.kernel.detach(), kernel)
    assert not student.provenance, "nothing was resized"


@pytest.mark.parametrize("how", ["weight 0", "a stage from the start", "a stage after the end"])
def test_init_takes_the_kernel_of_the_one_length_that_was_drawn(tmp_path: Path, how: str) -> None:
    from flexiclip.model_folder import save_model

    config = {
        "weight 0": staged(recipe(FLEXIBLE, [3, 4]), weights=[0, 1]),
        "a stage from the start": staged(recipe(FLEXIBLE, [3, 6]), {"start": 0, "seqhw": [4]}),
        "a stage after the end": staged(recipe(FLEXIBLE, [4]), {"start": "100%", "seqhw": [3]}),
    }[how]
    loaded = build_model(config)
    save_model(tmp_path / "fixed", loaded)
    student = build_model(recipe({**FLEXIBLE, "init": str(tmp_path / "fixed")}, [3, 4, 6]))
    wanted = full_pinv(full_pinv(loaded.model.image_tower.kernel.detach(), 12).float(), 16)
    torch.testing.assert_close(student.model.image_tower.kernel.detach().double(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("lock", "seqhw"), [(True, [3, 4, 6]), (False, [4])])
def test_a_tower_that_shall_stay_what_it_is_is_copied(tmp_path: Path, lock: bool, seqhw: list[int]) -> None:
    """One that is frozen, and one that trains on at its own length."""
    folder, kernel = fixed(tmp_path)
    student = build_model(recipe({**FLEXIBLE, "init": str(folder), "lock": lock}, seqhw))
    assert torch.equal(student.model.image_tower.kernel.detach(), kernel)
    assert not student.provenance


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_rebase_resizes_as_the_tower_that_it_takes_resizes(mode: str, antialias: bool) -> None:
    """Kernel and grid each by its own settings, on each axis its own sizes; timm and torch do the same."""
    from timm.layers import resample_patch_embed

    sizes = ImageTowerConfig(width=4, depth=1, heads=1, image_size=(48, 60), base_patch_size=(12, 15), base_grid=(4, 3))
    kernel_first = {"kernel_resize": mode, "kernel_antialias": antialias, "grid_resize": "bicubic", "grid_antialias": False}
    grid_first = {"grid_resize": mode, "grid_antialias": antialias, "kernel_resize": "bicubic", "kernel_antialias": True}
    generator = torch.Generator().manual_seed(0)
    state = {"kernel": torch.randn(4, 3, 12, 15, generator=generator), "posemb": torch.randn(1, 4, 4, 3, generator=generator)}
    for settings in (kernel_first, grid_first):
        theirs = replace(sizes, **settings)
        ours = replace(theirs, base_patch_size=(16, 20), base_grid=(7, 5))
        found, notes = rebase(state, theirs, ours, own_patch(theirs, (3, 4)))
        kernel = resample_patch_embed(
            state["kernel"], [16, 20], interpolation=settings["kernel_resize"], antialias=settings["kernel_antialias"]
        )
        torch.testing.assert_close(found["kernel"], kernel, rtol=0, atol=2e-5)
        how = {"mode": settings["grid_resize"], "antialias": settings["grid_antialias"], "align_corners": False}
        torch.testing.assert_close(found["posemb"], F.interpolate(state["posemb"], (7, 5), **how), rtol=0, atol=1e-5)
        assert notes == [
            "the patch kernel PI-resized from 12x15 to 16x20",
            "the position grid resampled from 4x3 to 7x5",
        ]
        assert rebase(state, theirs, theirs, (12, 15)) == (state, []), "nothing to do"
        larger = {**state, "kernel": torch.randn(4, 3, 16, 20, generator=generator)}  # of which patches of 12x15 were trained
        kernel = resample_patch_embed(
            larger["kernel"], [12, 15], interpolation=settings["kernel_resize"], antialias=settings["kernel_antialias"]
        )
        found, _ = rebase(larger, replace(theirs, base_patch_size=(16, 20)), theirs, (12, 15))
        torch.testing.assert_close(found["kernel"], kernel, rtol=0, atol=2e-5)


def test_own_patch_is_that_of_the_one_length_on_each_axis() -> None:
    config = ImageTowerConfig(width=4, depth=1, heads=1, image_size=(48, 60), base_patch_size=(16, 20))
    assert own_patch(config, (4,)) == own_patch(config, (4, 4)) == (12, 15)
    assert own_patch(config, (3, 4)) == (16, 20)
    assert own_patch(replace(config, flexible="stride"), (4,)) == (16, 20), "whose kernel is whole at any length"


def test_a_classifiers_head_is_no_way_into_a_joint_space(tmp_path: Path) -> None:
    from flexiclip.model_folder import save_model

    image = {**FLEXIBLE, "projection_bias": True}
    classifier = build_model(recipe(image, [4], classes=8))
    classifier.model.image_projection.weight.data.fill_(3.0)
    save_model(tmp_path / "classifier", classifier)
    image["init"] = str(tmp_path / "classifier")
    assert (build_model(recipe(image, [4], classes=8)).model.image_projection.weight == 3.0).all()
    assert (build_model(recipe(image, [4])).model.image_projection.weight != 3.0).all()
