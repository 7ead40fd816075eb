"""Weights of open_clip models: checkpoints of open_clip_train with their prefixes and biases, against open_clip called directly.

Mistakes that open_clip only warns about, or does not check, are errors of one line.
"""

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
from flexiclip.errors import UserError
from flexiclip.models.text import build_text_tower
from flexiclip.models.text.open_clip_load import (
    check_activation,
    check_folder,
    fill,
    model_config,
    refuse_foreign_code,
    whole_number,
    with_weights,
)

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
        ({"visual.extra": torch.zeros(2)}, "unused: visual.extra"),
        ({"visual.conv1.weight": torch.zeros(64, 3, 8, 8)}, "visual.conv1.weight [64, 3, 8, 8] instead of [64, 3, 16, 16]"),
        ({"positional_embedding": torch.zeros(32, 64)}, "text.positional_embedding [32, 64] instead of [77, 64]"),
        ({"visual.positional_embedding": torch.zeros(17, 64)}, "visual.positional_embedding [17, 64] instead of [10, 64]"),
        ({"ln_final.bias": None, "text_projection": None}, "missing: "),
    ):
        changed = {name: tensor for name, tensor in (state | change).items() if tensor is not None}
        torch.save(changed, tmp_path / "w.pt")
        said = refused(capsys, tmp_path / "w.pt", "open_clip", tmp_path / "m", "--arch", arch)
        assert message in said
        assert "NoneType" not in said


def test_model_config_is_open_clips_and_names_what_it_does_not_know(tmp_path: Path) -> None:
    assert model_config("ViT-B-16", "there") == open_clip.get_model_config("ViT-B-16")
    with pytest.raises(UserError, match=r"^there: open_clip knows no model 'ViT-Z-1'"):
        model_config("ViT-Z-1", "there")
    with pytest.raises(UserError, match=r"open_clip_config\.json"):
        model_config(f"local-dir:{tmp_path}", "there")
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(UserError, match=r"open_clip_config\.json"):
        model_config(f"local-dir:{tmp_path}", "there")


def test_whole_number_is_the_setting_or_the_default() -> None:
    assert whole_number({"context_length": 64}, "context_length", 77) == 64
    assert whole_number({}, "context_length", 77) == 77
    with pytest.raises(UserError, match=r"^open_clip's setting context_length='64' is not a whole number$"):
        whole_number({"context_length": "64"}, "context_length", 77)


def test_refuse_foreign_code_answers_for_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers gives the user this many seconds to agree, and raises an error after them."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "TIME_OUT_REMOTE_CODE", 15)
    refuse_foreign_code()
    with pytest.raises(ValueError, match="requires you to execute"):
        dynamic_module_utils.resolve_trust_remote_code(None, "some/model", has_local_code=False, has_remote_code=True)


def test_check_activation_refuses_the_other_gelu_and_names_a_model_that_fits() -> None:
    """All published weights: those of OpenAI were trained with QuickGELU, those of LAION with GELU; files have no such record."""
    refused = []
    for name, tag in open_clip.list_pretrained():
        described = open_clip.get_model_config(name)
        try:
            check_activation(name, tag, described, "there")
        except UserError as error:
            right, _, right_tag = str(error).rpartition("the other GELU; name ")[2].partition("/")
            check_activation(right, right_tag, open_clip.get_model_config(right), "there")
            assert (right, right_tag) in open_clip.list_pretrained()
            refused.append((name, tag))
        check_activation(name, None, described, "there")
    assert ("ViT-B-32", "openai") in refused
    assert ("ViT-B-32", "laion2b_s34b_b79k") not in refused
    assert not [name for name, _ in refused if name.endswith("-quickgelu")]


def test_check_folder_takes_the_file_that_open_clip_would_load(arch: str, tmp_path: Path) -> None:
    from open_clip.factory import _find_checkpoint_in_dir

    state = {
        name: tensor.contiguous() for name, tensor in open_clip.create_model(arch, force_custom_text=True).state_dict().items()
    }
    for name in ("a.pth", "z.safetensors", "pytorch_model.bin", "model.safetensors", "open_clip_pytorch_model.bin"):
        if name.endswith(".safetensors"):
            save_file(state, tmp_path / name)
        else:
            torch.save(state, tmp_path / name)
        found = check_folder(tmp_path, CONFIG, "there")  # type: ignore[arg-type]
        assert found == tmp_path / name, "each is preferred to those before it"
        assert Path(str(_find_checkpoint_in_dir(tmp_path))).name == name


def test_check_folder_refuses_settings_that_do_not_fit_its_weights(arch: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^there: no weights there, such as open_clip_model\.safetensors$"):
        check_folder(tmp_path, CONFIG, "there")  # type: ignore[arg-type]
    torch.save(open_clip.create_model(arch, force_custom_text=True).state_dict(), tmp_path / "pytorch_model.bin")
    for half in ("vision_cfg", "text_cfg"):
        with pytest.raises(UserError, match=f"^there: no {half} in its open_clip_config.json$"):
            check_folder(tmp_path, {**CONFIG, half: "ViT"}, "there")  # type: ignore[arg-type]
        for sizes in ({"layers": 10**6}, {"width": 10**7}):
            with pytest.raises(UserError, match=r"^there"):
                check_folder(tmp_path, {**CONFIG, half: {**CONFIG[half], **sizes}}, "there")  # type: ignore[arg-type,dict-item]


def test_with_weights_of_a_file_notes_what_it_read_and_fill_wants_every_tensor(arch: str, tmp_path: Path) -> None:
    theirs = trained(arch)
    torch.save(checkpoint(theirs.state_dict()), tmp_path / "epoch_3.pt")
    found, _ = with_weights(arch, str(tmp_path / "epoch_3.pt"), model_config(arch, "there"), "there")
    assert float(found.logit_bias) == float(theirs.logit_bias)
    with torch.no_grad():
        assert largest_difference(found.eval().encode_image(images(48)), theirs.encode_image(images(48))) < 1e-5
    model = open_clip.create_model(arch, force_custom_text=True)
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "visual.proj"}
    with pytest.raises(UserError, match=r"^there: the file does not have the weights of that model \(missing: visual\.proj"):
        fill(model, state, "there")
