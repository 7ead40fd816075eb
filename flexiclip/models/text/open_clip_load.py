"""What is refused before open_clip is asked, which only warns where a model would be wrong, and builds whatever is written.

open_clip's models filled with weights: of a file or a folder by our own readers, of a name on a hub by open_clip.

A file may be a checkpoint of `open_clip_train`: with the optimizer's state beside it, with the prefixes of DDP and torch.compile,
and with the bias of the sigmoid loss (`--siglip`), which the configuration of the architecture does not have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flexiclip.errors import UserError
from flexiclip.models.sizes import check_build, check_layers
from flexiclip.tensor_files import read_checkpoint, read_state

_WEIGHTS = (".safetensors", ".bin", ".pth")
_PREFERRED = (  # of open_clip.factory._find_checkpoint_in_dir
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)


def check_folder(folder: Path, described: dict[str, Any], source: str) -> Path:
    """The weight file that open_clip takes there.

    The config came with the folder, so anything may stand in it: sizes that the weights have no room for are refused.
    """
    import open_clip

    for half in ("vision_cfg", "text_cfg"):
        settings = described.get(half)
        if not isinstance(settings, dict):
            raise UserError(f"{source}: no {half} in its open_clip_config.json")
        layers = settings.get("layers", 0)
        for number in layers if isinstance(layers, list) else [layers]:  # a ResNet has four of them
            check_layers(number, f"{source}: {half}")
    halves = [dict(described[half]) for half in ("vision_cfg", "text_cfg")]
    files = sorted(path for path in folder.iterdir() if path.suffix in _WEIGHTS)
    if not files:
        raise UserError(f"{source}: no weights there, such as open_clip_model.safetensors")
    named = [folder / name for name in _PREFERRED if folder / name in files]
    file = (named or sorted(files, key=lambda path: path.suffix != ".safetensors"))[0]
    read_state(file)  # within bounds, which open_clip does not keep
    if not any(
        name in half for half in halves for name in ("timm_model_name", "hf_model_name")
    ):  # those are built by their names
        quick_gelu = described.get("quick_gelu", False)
        check_build(lambda: open_clip.CustomTextCLIP(described["embed_dim"], *halves, quick_gelu=quick_gelu), file, source)
    return file


def check_activation(name: str, tag: str | None, described: dict[str, Any], source: str) -> None:
    """open_clip only warns where weights meet the wrong GELU; the model would be off by some percent for good."""
    import open_clip

    trained = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu") if tag else None
    if trained is not None and trained != described.get("quick_gelu", False):
        mend = f"{name}-quickgelu/{tag}" if trained else f"{name.removesuffix('-quickgelu')}/{tag}"
        raise UserError(f"{source}: these weights were trained with the other GELU; name {mend}")


_BARE: dict[str, Any] = {"force_custom_text": True, "pretrained_text": False}  # two towers, and no other weights fetched
_POSITION_IDS = "text.transformer.embeddings.position_ids"  # transformers stored them until 4.31


def with_weights(name: str, weights: str | None, described: dict[str, Any], source: str) -> tuple[Any, list[str]]:
    """(open_clip's CustomTextCLIP `name` with its weights, notes).

    weights: a tag or a file; None for hf-hub: and local-dir:, which bring their own. described: open_clip.get_model_config(name).
    source: for messages. Raises UserError, and whatever open_clip raises.
    """
    file = Path(weights) if weights is not None and Path(weights).is_file() else None
    if name.startswith("local-dir:"):
        file = check_folder(Path(name.removeprefix("local-dir:")), described, source)
    if file is not None:
        return _from_file(name, file, described, source)
    check_activation(name, weights, described, source)
    return _from_hub(name, weights), []


def _from_file(name: str, file: Path, described: dict[str, Any], source: str) -> tuple[Any, list[str]]:
    """(the model with the weights of a file, as open_clip.factory.load_checkpoint fills it, notes)."""
    import open_clip
    from open_clip.factory import load_checkpoint

    if file.suffix == ".npz":  # open_clip reads big_vision's files as well
        model: Any = open_clip.create_model(name, load_weights=False, **_BARE)
        load_checkpoint(model, str(file))
        return model, []
    tensors, notes = read_checkpoint(file)
    bias = described.get("init_logit_bias")
    if bias is None and "logit_bias" in tensors:  # of `open_clip_train --siglip`, which gives any model one
        bias = 0.0  # makes the parameter; its value is the file's
    model = open_clip.create_model(name, load_weights=False, **_BARE, **({} if bias is None else {"init_logit_bias": bias}))
    return fill(model, tensors, source), notes


def _from_hub(name: str, tag: str | None) -> Any:
    """The model with the weights that open_clip finds under a name."""
    import open_clip

    options = {**_BARE, "pretrained": tag, "require_pretrained": True}
    try:
        return open_clip.create_model(name, **options)
    except AttributeError as error:  # weights with a bias for the logits, which the configuration does not have
        if "ndim" not in str(error):
            raise
        return open_clip.create_model(name, **options, init_logit_bias=0.0)


def fill(model: Any, tensors: dict[str, Tensor], source: str) -> Any:
    """The model of open_clip with the tensors of a file in it, every one of them.

    As open_clip.factory.load_checkpoint does it, but positions of another size are refused, not resized without a word.
    """
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    state = dict(convert_state_dict(model, tensors))
    if "positional_embedding" in state:  # of a CLIP whose text half has no name of its own
        state = dict(convert_to_custom_text_state_dict(state))
    wanted = model.state_dict()
    if _POSITION_IDS not in wanted:
        state.pop(_POSITION_IDS, None)
    for name in {"logit_scale", "logit_bias"} & wanted.keys() & state.keys():  # numbers with and without a dimension
        state[name] = state[name].reshape(wanted[name].shape)
    if "logit_bias" in wanted:  # trained without the sigmoid loss: open_clip takes none for 0
        state.setdefault("logit_bias", torch.zeros_like(wanted["logit_bias"]))
    check_file(state, wanted, source)
    model.load_state_dict(state)
    return model


def check_file(tensors: dict[str, Tensor], wanted: dict[str, Tensor], source: str) -> None:
    """Raise UserError unless names and shapes are the model's: a kernel of another size says that NAME is wrong."""
    for name, tensor in wanted.items():
        if name in tensors and tensors[name].shape != tensor.shape:
            found = list(tensors[name].shape)
            raise UserError(
                f"{source}: {name} is {found} in the file and {list(tensor.shape)} in that model; is it another NAME?"
            )
    missing, left = wanted.keys() - tensors.keys(), tensors.keys() - wanted.keys()
    if missing or left:
        said = [f"{what} {_listed(names)}" for what, names in (("lacks", missing), ("has besides", left)) if names]
        raise UserError(f"{source}: not the weights of that model: the file {' and '.join(said)}; is it another NAME?")


def _listed(names: set[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(sorted(names)[:3]) + more
