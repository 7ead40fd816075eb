"""`init: MODEL` at the top of a recipe: the model to start from, and the part of a recipe that describes it.

    init: open_clip:ViT-B-32-quickgelu/openai     # or a run folder, a model folder, a folder of transformers, ...

`settings_of` fills in the towers, their preprocessing, the tokenizer, the scale and bias of the loss, and the lengths. It names
MODEL as `model.image.init` and `model.text.init`. The keys of the recipe itself replace these. `open_initial` opens the model
again when the run takes its weights.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from safetensors import safe_open
from torch import Tensor

from flexiclip.config import Config, to_dict
from flexiclip.config.validate import valid_seqhw
from flexiclip.data.tokenizers import FOLDER
from flexiclip.errors import UserError
from flexiclip.formats.run import read_model
from flexiclip.model_folder import LoadedModel, load_parsed, read_config
from flexiclip.model_source import OPENED, WEIGHTS, Kind, ModelSource, parse_model

_OF_THE_RUN = ("lock", "unlock_last")
"""The keys of a tower that say how it trains and not what it is."""

_SCALARS = ("logit_scale", "logit_bias")


def settings_of(model: str) -> dict[str, Any]:
    """Return the part of a recipe that describes a model, with the model as `init` of its towers. Raises UserError."""
    source = parse_model(model, OPENED, "init")
    config, scalars = _read(source)
    section, tokenizer = to_dict(config)["model"], to_dict(config.tokenizer)
    assert isinstance(section, dict)
    for half in ("image", "text"):
        if section[half] is not None:
            section[half] = {key: value for key, value in section[half].items() if key not in _OF_THE_RUN} | {"init": model}
    patch = {"seqhw": _lengths(config)}
    if config.model.text is None:  # an image tower alone has no scale
        return {"model": {key: value for key, value in section.items() if not key.startswith("logit_")}, "patch": patch}
    factor = scalars["logit_scale"]
    section |= {"logit_scale_init": factor, "logit_scale_max": max(config.model.logit_scale_max, factor)}
    section["logit_bias_init"] = bias = scalars.get("logit_bias")
    if source.kind is Kind.MODEL:
        tokenizer["path"] = str((source.path / FOLDER).absolute())
    loss = {"kind": "softmax" if bias is None else "sigmoid"}
    return {"model": section, "tokenizer": tokenizer, "patch": patch, "loss": loss}


def _lengths(config: Config) -> list[int]:
    """Return the lengths that a model was trained at or, if that is a single one, all from half to double of it."""
    trained = config.trained_seqhw
    if len(trained) > 1:
        return list(trained)
    image, (own,) = config.model.image, trained
    return [side for side in valid_seqhw(image.image_size, image.widest_stride) if own <= 2 * side <= 4 * own]


def open_initial(source: ModelSource) -> LoadedModel:
    """Open a model of any kind in eval mode on the CPU. One that `settings_of` has just opened is not read again."""
    if source.kind is Kind.MODEL:
        return load_parsed(source)
    try:
        return _open(source)
    finally:
        _open.cache_clear()  # so that its weights are not kept during the run


@lru_cache(maxsize=1)
def _open(source: ModelSource) -> LoadedModel:
    return read_model(source)


def _read(source: ModelSource) -> tuple[Config, dict[str, float]]:
    """Return the config of a model, and the scale of its loss as a factor and the bias if it has one."""
    tensors: dict[str, Tensor]
    if source.kind is not Kind.MODEL:
        loaded = _open(source)
        config, tensors = loaded.config, {name: p for name, p in loaded.model.named_parameters(recurse=False)}  # noqa: C416
    else:
        config, _ = read_config(source.path)
        path = source.path / WEIGHTS
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in _SCALARS if name in file.keys()}  # noqa: SIM118 (not a dict)
        except Exception as error:
            raise UserError(f"{path}: cannot be read as safetensors ({error}); copy or train the model again") from None
    found = {name: tensor.detach().reshape(()) for name, tensor in tensors.items()}
    return config, {name: float(t.exp() if name == "logit_scale" else t) for name, t in found.items()}
