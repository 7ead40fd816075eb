"""Checkpoints of open_clip_train through `flexiclip import`: prefixes, wrappers and the bias of the sigmoid loss."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from kit.golden import largest_difference
from kit.weights import CAPTIONS, images, imported, perturbed, refused
from safetensors.torch import save_file
from torch import Tensor

from flexiclip.config import TextTowerConfig
from flexiclip.models.text import build_text_tower

ARCH = "tiny-for-tests"
CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 48, "patch_size": 16, "layers": 2, "width": 64, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def arch(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a small architecture that open_clip knows in this process."""
    path = tmp_path_factory.mktemp("configs") / f"{ARCH}.json"
    path.write_text(json.dumps(CONFIG))
    open_clip.add_model_config(path)
    return ARCH


def trained(arch: str, siglip: bool = True, custom: bool = False) -> Any:
    """As open_clip_train builds it: --siglip starts with a scale of 10 and a bias of -10, whatever the architecture says."""
    options = {"init_logit_scale": math.log(10), "init_logit_bias": -10} if siglip else {}
    return perturbed(open_clip.create_model(arch, force_custom_text=custom, **options))


def checkpoint(state: State) -> dict[str, Any]:
    """What open_clip_train writes after an epoch."""
    return {"epoch": 3, "name": "run", "state_dict": state, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]}}


def named(rename: Callable[[str], str]) -> Callable[[State], State]:
    return lambda state: {rename(name): tensor for name, tensor in state.items()}


WRITTEN: dict[str, Callable[[State], Any]] = {
    "checkpoint": checkpoint,
    "DDP": lambda state: checkpoint(named(lambda n: f"module.{n}")(state)),
    "torch.compile in DDP": lambda state: checkpoint(named(lambda n: f"module._orig_mod.{n}")(state)),
    "a compiled image tower": lambda state: checkpoint(named(lambda n: n.replace("visual.", "visual._orig_mod."))(state)),
    "FSDP": lambda state: checkpoint(named(lambda n: f"_fsdp_wrapped_module.{n}")(state)),
}


@torch.no_grad()
def assert_same(ours: Any, theirs: Any) -> None:
    tokens = open_clip.tokenize(CAPTIONS)
    assert largest_difference(ours.model.encode_image(images(48)), theirs.encode_image(images(48))) < 1e-5
    assert largest_difference(ours.model.encode_text(tokens), theirs.encode_text(tokens)) < 1e-5
    assert float(ours.model.logit_scale) == float(theirs.logit_scale)
    assert (ours.model.logit_bias is None) == (theirs.logit_bias is None)
    if theirs.logit_bias is not None:
        assert float(ours.model.logit_bias) == float(theirs.logit_bias)


@pytest.mark.parametrize("written", WRITTEN)
def test_checkpoints_of_open_clip_train_siglip(written: str, arch: str, tmp_path: Path) -> None:
    theirs = trained(arch)
    torch.save(WRITTEN[written](theirs.state_dict()), tmp_path / "epoch_3.pt")
    ours = imported(tmp_path / "epoch_3.pt", "open_clip", tmp_path / "m", "--arch", arch)
    assert_same(ours, theirs)
    assert ours.config.model.logit_bias_init != -10, "the trained bias, not the one it started from"
    assert ours.config.model.logit_bias_init == float(theirs.logit_bias)


@pytest.mark.parametrize(("siglip", "custom"), [(False, False), (True, True)], ids=["CLIP", "CustomTextCLIP with a bias"])
def test_both_forms_of_open_clips_state_dict(siglip: bool, custom: bool, arch: str, tmp_path: Path) -> None:
    theirs = trained(arch, siglip, custom)
    save_file({name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}, tmp_path / "w.safetensors")
    assert_same(imported(f"{arch}/{tmp_path / 'w.safetensors'}", "open_clip", tmp_path / "m"), theirs)


def test_a_folder_whose_configuration_lacks_the_bias_of_its_weights(arch: str, tmp_path: Path) -> None:
    theirs = trained(arch)
    (tmp_path / "oc").mkdir()
    (tmp_path / "oc" / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {}}))
    torch.save(named(lambda n: f"_orig_mod.{n}")(theirs.state_dict()), tmp_path / "oc" / "pytorch_model.bin")
    assert_same(imported(f"local-dir:{tmp_path / 'oc'}", "open_clip", tmp_path / "m"), theirs)
    other = perturbed(trained(arch), 0.02)
    torch.save(other.state_dict(), tmp_path / "oc" / "open_clip_pytorch_model.bin")
    assert_same(imported(f"local-dir:{tmp_path / 'oc'}", "open_clip", tmp_path / "preferred"), other)


def test_an_architecture_with_a_bias_takes_none_for_zero_as_open_clip_does(arch: str, tmp_path: Path) -> None:
    """A SigLIP architecture trained with CLIP's loss: the configuration's -10 never was in its logits."""
    (tmp_path / "oc").mkdir()
    (tmp_path / "oc" / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG | {"init_logit_bias": -10}}))
    torch.save(trained(arch, siglip=False).state_dict(), tmp_path / "oc" / "open_clip_pytorch_model.bin")
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'oc'}").eval()
    assert float(theirs.logit_bias) == 0
    assert_same(imported(f"local-dir:{tmp_path / 'oc'}", "open_clip", tmp_path / "m"), theirs)


@torch.no_grad()
def test_the_text_tower_of_a_recipe_reads_the_same_checkpoints(arch: str, tmp_path: Path) -> None:
    theirs = trained(arch)
    torch.save(WRITTEN["torch.compile in DDP"](theirs.state_dict()), tmp_path / "epoch_3.pt")
    tower = build_text_tower(TextTowerConfig(kind="open_clip", name=f"{arch}/{tmp_path / 'epoch_3.pt'}")).eval()
    tokens = open_clip.tokenize(CAPTIONS)
    assert largest_difference(tower(tokens), theirs.encode_text(tokens)) < 1e-5


def test_files_that_are_not_of_the_model_say_how(arch: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = trained(arch).state_dict()
    for change, message in (
        ({"visual.extra": torch.zeros(2)}, "has besides visual.extra"),
        ({"visual.conv1.weight": torch.zeros(64, 3, 8, 8)}, "visual.conv1.weight is [64, 3, 8, 8] in the file"),
        ({"positional_embedding": torch.zeros(32, 64)}, "text.positional_embedding is [32, 64] in the file and [77, 64]"),
        ({"visual.positional_embedding": torch.zeros(17, 64)}, "visual.positional_embedding is [17, 64] in the file"),
        ({"ln_final.bias": None, "text_projection": None}, "lacks "),
    ):
        changed = {name: tensor for name, tensor in (state | change).items() if tensor is not None}
        torch.save(changed, tmp_path / "w.pt")
        said = refused(capsys, tmp_path / "w.pt", "open_clip", tmp_path / "m", "--arch", arch)
        assert message in said
        assert "NoneType" not in said
