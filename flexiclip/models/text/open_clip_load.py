"""Loading the weights of open_clip models, with the checks that open_clip itself does not make.

Files and folders are read by our own readers, and names on a hub by open_clip. open_clip only warns about some mistakes
that give a wrong model, and it builds whatever a config says, so both are checked here first.

A file may be a checkpoint of `open_clip_train`. It then contains the optimizer's state, prefixes of DDP and
torch.compile, and the bias of the sigmoid loss (`--siglip`), which the configuration of the architecture does not have.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor

from flexiclip.errors import UserError
from flexiclip.files import read_json
from flexiclip.libraries import library_errors
from flexiclip.model_source import OPEN_CLIP_CONFIG
from flexiclip.models.sizes import check_build, check_layers
from flexiclip.tensor_files import misfits, read_checkpoint, read_state

if TYPE_CHECKING:
    from open_clip import CustomTextCLIP


class ModelConfig(TypedDict, total=False):
    """open_clip's settings of a model. Those of a folder are not trusted: `check_folder` looks at them first."""

    embed_dim: int
    vision_cfg: dict[str, object]
    text_cfg: dict[str, object]
    quick_gelu: bool
    init_logit_bias: float


CONTEXT, VOCABULARY = 77, 49_408  # open_clip's defaults, those of CLIP
_WEIGHTS = (".safetensors", ".bin", ".pth")
_PREFERRED = (  # the order of open_clip.factory._find_checkpoint_in_dir
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
_BARE = {"force_custom_text": True, "pretrained_text": False}  # separate towers, and no download of other weights
_POSITION_IDS = "text.transformer.embeddings.position_ids"  # transformers stored these until 4.31


def model_config(name: str, where: str) -> ModelConfig:
    """Return open_clip's settings of a model. `name` is NAME, hf-hub:ORG/REPO or local-dir:FOLDER.

    Raises UserError, which starts with `where`, if open_clip does not know the model or cannot read its settings.
    """
    import open_clip

    refuse_foreign_code()
    if name.startswith("local-dir:"):
        read_json(Path(name.removeprefix("local-dir:")) / OPEN_CLIP_CONFIG)  # explains a broken file
    with library_errors(f"{where}: open_clip cannot read its configuration"):
        found: ModelConfig | None = open_clip.get_model_config(name)
    if not isinstance(found, dict):
        near = difflib.get_close_matches(name, open_clip.list_models(), n=3, cutoff=0.6)
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        raise UserError(f"{where}: open_clip knows no model {name!r}; {meant}open_clip.list_models() lists all")
    return found


def check_pretrained(name: str, tag: str | None, where: str) -> None:
    """Raise UserError, which lists the tags that there are, if `tag` is neither a file nor a tag of open_clip's model `name`.

    A name with a scheme (hf-hub:, local-dir:) has its own weights.
    """
    import open_clip

    if tag is None or ":" in name or Path(tag).is_file() or open_clip.is_pretrained_cfg(name, tag):
        return
    known = open_clip.list_pretrained_tags_by_model(name)
    near = difflib.get_close_matches(tag, known, n=1, cutoff=0.5)
    meant = f"did you mean {near[0]}? " if near else ""
    tags = f"its tags are {', '.join(known)}" if known else "it has no published weights"
    raise UserError(f"{where}: open_clip cannot load it: {tag!r} is neither a file nor a tag of {name}; {meant}{tags}")


def require_pretrained(name: str, weights: str | None, where: str) -> None:
    """Raise UserError if neither the name nor `weights` says which weights open_clip shall load."""
    if weights is None and ":" not in name:
        raise UserError(f"{where}: name the weights too, NAME/PRETRAINED, a tag or a file")


def refuse_foreign_code() -> None:
    """Make transformers refuse, in this process, to run code that comes with a model, where it would ask on the terminal.

    It asks if its caller does not set trust_remote_code, and open_clip does not set it.
    """
    with suppress(ImportError):
        from transformers import dynamic_module_utils

        dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # with no time for an answer it raises ValueError at once


def whole_number(settings: Mapping[str, object], key: str, default: int) -> int:
    """Return a setting that must be a whole number, or the default if it is missing. Raises UserError for another type."""
    value = settings.get(key, default)
    if not isinstance(value, int):
        raise UserError(f"open_clip's setting {key}={value!r} is not a whole number")
    return value


def check_folder(folder: Path, described: ModelConfig, source: str) -> Path:
    """Return the weight file that open_clip would load from a folder, after checks.

    The config came with the folder, so its values are not trusted: sizes that do not fit into the weight file raise
    UserError, and so does a folder without weights.
    """
    import open_clip

    halves = []
    for half in ("vision_cfg", "text_cfg"):
        settings = described.get(half)
        if not isinstance(settings, dict):
            raise UserError(f"{source}: no {half} in its {OPEN_CLIP_CONFIG}")
        layers = settings.get("layers", 0)
        for number in layers if isinstance(layers, list) else [layers]:  # a ResNet has four numbers
            check_layers(number, f"{source}: {half}")
        for key in ("timm_model_name", "hf_model_name"):
            place = str(settings.get(key, "")).removeprefix("local-dir:")
            if os.path.isabs(place) and not os.path.isdir(place):
                raise UserError(
                    f"{source}: the folder was moved: its {OPEN_CLIP_CONFIG} names {place} in model_cfg.{half}.{key}; "
                    "write the new path there"
                )
        halves.append(dict(settings))
    files = sorted(path for path in folder.iterdir() if path.suffix in _WEIGHTS)
    if not files:
        raise UserError(f"{source}: no weights there, such as open_clip_model.safetensors")
    named = [folder / name for name in _PREFERRED if folder / name in files]
    file = (named or sorted(files, key=lambda path: path.suffix != ".safetensors"))[0]
    read_state(file)  # reads within bounds, which open_clip does not check
    if not any(
        name in half for half in halves for name in ("timm_model_name", "hf_model_name")
    ):  # those are built by name, not from sizes
        quick_gelu = described.get("quick_gelu", False)
        check_build(lambda: open_clip.CustomTextCLIP(described["embed_dim"], *halves, quick_gelu=quick_gelu), file, source)
    return file


def check_activation(name: str, tag: str | None, described: ModelConfig, source: str) -> None:
    """Raise UserError if the weights were trained with another GELU than the model has.

    open_clip only warns about this, and every embedding would be off by some percent.
    """
    import open_clip

    trained = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu") if tag else None
    if trained is not None and trained != described.get("quick_gelu", False):
        right = f"{name}-quickgelu/{tag}" if trained else f"{name.removesuffix('-quickgelu')}/{tag}"
        raise UserError(f"{source}: these weights were trained with the other GELU; name {right}")


def with_weights(name: str, weights: str | None, described: ModelConfig, source: str) -> tuple[CustomTextCLIP, list[str]]:
    """Return open_clip's CustomTextCLIP `name` with its weights, and notes.

    `weights` is a tag or a file; it is None for hf-hub: and local-dir:, which have their own weights. `described` is the
    result of `model_config`. `source` starts the error messages. Raises UserError, and any error that
    open_clip raises.
    """
    file = Path(weights) if weights is not None and Path(weights).is_file() else None
    if name.startswith("local-dir:"):
        file = check_folder(Path(name.removeprefix("local-dir:")), described, source)
    if file is not None:
        return _from_file(name, file, described, source)
    check_activation(name, weights, described, source)
    return _from_hub(name, weights), []


def _from_file(name: str, file: Path, described: ModelConfig, source: str) -> tuple[CustomTextCLIP, list[str]]:
    """Return the model with the weights of a file, filled in as open_clip.factory.load_checkpoint does it, and notes."""
    import open_clip
    from open_clip.factory import load_checkpoint

    if file.suffix == ".npz":  # open_clip reads big_vision's files itself
        model = open_clip.create_model(name, load_weights=False, **_BARE)
        load_checkpoint(model, str(file))
        return model, []
    tensors, notes = read_checkpoint(file)
    bias = described.get("init_logit_bias")
    if bias is None and "logit_bias" in tensors:  # `open_clip_train --siglip` adds a bias to any model
        bias = 0.0  # this creates the parameter, whose value then comes from the file
    model = open_clip.create_model(name, load_weights=False, **_BARE, **({} if bias is None else {"init_logit_bias": bias}))
    return fill(model, tensors, source), notes


def _from_hub(name: str, tag: str | None) -> CustomTextCLIP:
    """Return the model with the weights that open_clip finds under a name."""
    import open_clip

    options = {**_BARE, "pretrained": tag, "require_pretrained": True}
    try:
        return open_clip.create_model(name, **options)
    except AttributeError as error:  # the weights have a logit_bias, but the configuration does not
        if "ndim" not in str(error):
            raise
        return open_clip.create_model(name, **options, init_logit_bias=0.0)


def fill(model: CustomTextCLIP, tensors: dict[str, Tensor], source: str) -> CustomTextCLIP:
    """Load the tensors of a file into a model of open_clip. Every tensor must fit.

    This follows open_clip.factory.load_checkpoint, except that position embeddings of another size raise UserError
    instead of being resized silently.
    """
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    state = dict(convert_state_dict(model, tensors))
    if "positional_embedding" in state:  # a CLIP whose text half is not a separate module
        state = dict(convert_to_custom_text_state_dict(state))
    wanted = model.state_dict()
    if _POSITION_IDS not in wanted:
        state.pop(_POSITION_IDS, None)
    for name in {"logit_scale", "logit_bias"} & wanted.keys() & state.keys():  # stored as [] or as [1]
        state[name] = state[name].reshape(wanted[name].shape)
    if "logit_bias" in wanted:  # a model trained without the sigmoid loss: open_clip uses 0
        state.setdefault("logit_bias", torch.zeros_like(wanted["logit_bias"]))
    if said := misfits(state, wanted):
        raise UserError(f"{source}: the file does not have the weights of that model ({said}); is it another NAME?")
    model.load_state_dict(state)
    return model
