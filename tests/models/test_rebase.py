"""A tower at other base sizes: the kernel by the full pseudo-inverse, the grid by torch's own resize, the rest as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from flexiclip.config import Config, ImageTowerConfig, from_dict
from flexiclip.formats.run import ImportOptions, import_weights
from flexiclip.model_folder import build_model, load_model
from flexiclip.models.flexivit import own_patch, rebase

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
