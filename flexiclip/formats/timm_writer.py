"""Writer of timm's model folders: the image tower at one length.

    timm.create_model("local-dir:FOLDER", pretrained=True)

The projection becomes timm's classifier, so the output of timm's model is the embedding. timm's VisionTransformer has
every pool that ours has. The epsilon of its norms depends on the name of the architecture, and everything else is written
into the folder's config.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from flexiclip.config.schema import Size, pair
from flexiclip.formats.imported import one_side
from flexiclip.formats.layouts import TIMM, set_rows, write_layout
from flexiclip.formats.written import (
    State,
    Written,
    colours,
    mlp_ratio,
    projection_bias,
    projection_weight,
    refuse,
    shape_facts,
    write_json,
    write_weights,
)
from flexiclip.libraries import require
from flexiclip.model_folder import LoadedModel
from flexiclip.models.exits import bake
from flexiclip.models.flexivit import FlexiViT
from flexiclip.models.transformer import ACTIVATIONS

_EPSILONS = {1e-6: "vit_base_patch16_224", 1e-5: "vit_base_patch16_clip_224"}  # architectures whose norms have this epsilon
CONFIG = "config.json"
POOLS = {"tok": "token", "gap": "avg", "map": "map"}


def write(loaded: LoadedModel, seqhw: Size | None, folder: Path) -> Written:
    """Write config.json and model.safetensors for one length.

    Raises UserError with the reason if timm cannot express the tower.
    """
    timm = require("timm", "timm", "this export")
    tower, projection = bake(loaded.model.image_tower, seqhw), loaded.model.image_projection
    has_head = isinstance(projection, nn.Linear)
    outputs = loaded.config.model.embed_dim if has_head else 0
    state = tower_state(tower)
    if has_head:
        state["head.weight"] = projection_weight(projection, tower.width)
        state["head.bias"] = projection_bias(projection, outputs)
    write_json(folder / CONFIG, config_of(tower, loaded, outputs))
    write_weights(folder / "model.safetensors", state)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    model.load_state_dict(state, strict=True)  # timm's own loading skips tensors that do not fit
    load = f'```python\nmodel = timm.create_model("local-dir:{folder.name}", pretrained=True).eval()\n```\n\n'
    usage = load + "Images as `timm.data.create_transform(**timm.data.resolve_model_data_config(model))` makes them."
    return Written(usage, model, None)


def config_of(tower: FlexiViT, loaded: LoadedModel, outputs: int) -> dict[str, object]:
    """Return timm's config.json for a baked tower. `outputs` is the number of outputs of the classifier, or 0 without one."""
    config = tower.config
    if config.norm_eps not in _EPSILONS:
        raise refuse("timm", f"norm_eps={config.norm_eps}, and timm's architectures have {' or '.join(map(str, _EPSILONS))}")
    width, depth, heads, hidden = shape_facts(tower)
    arguments = {
        "img_size": one_side(*tower.image_size),
        "patch_size": one_side(*pair(config.base_patch_size)),
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": mlp_ratio(width, hidden),
        "num_classes": outputs,
        "class_token": config.pool == "tok",
        "no_embed_class": True,
        "global_pool": POOLS[config.pool],
        "fc_norm": False,
        "pre_norm": config.pre_norm,
        "act_layer": config.activation,
    }
    pretrained = {
        "input_size": [3, *tower.image_size],
        **colours(loaded),
        "crop_pct": 1.0,
        "crop_mode": "squash" if loaded.transform.preprocess.resize == "squash" else "center",
        "fixed_input_size": True,
        "num_classes": outputs,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    return {
        "architecture": _EPSILONS[config.norm_eps],
        "num_classes": outputs,
        "num_features": width,
        "global_pool": POOLS[config.pool],
        "model_args": arguments,
        "pretrained_cfg": pretrained,
    }


def tower_state(tower: FlexiViT) -> State:
    """Return the state dict of timm's VisionTransformer for a baked tower, without a classifier."""
    state = dict(tower.state_dict())
    set_rows(state, bias_apart=not tower.config.pre_norm, class_row=False)  # with a pre-norm, timm's patches have no bias
    state["posemb"] = state["posemb"][None]
    return write_layout(state, TIMM)


def registered_name(tower: FlexiViT) -> str | None:
    """Return the name of timm's own architecture that equals this tower at this length, or None if there is none.

    The pool may differ, because it is an argument of timm's models.
    """
    timm = require("timm", "timm", "this export")
    config = tower.config
    (height, width), (p, q) = tower.image_size, pair(config.base_patch_size)
    if height != width or p != q or config.pool == "tok":
        return None
    wanted = {name: tensor.shape for name, tensor in tower_state(tower).items()}
    for name in timm.list_models(f"vit_*_patch{p}_siglip*_{height}"):
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0, global_pool=POOLS[config.pool])
        same = {key: tensor.shape for key, tensor in model.state_dict().items()} == wanted
        if same and _same_functions(model, tower):
            return str(name)
    return None


def _same_functions(model: Any, tower: FlexiViT) -> bool:
    """Return whether the settings that shapes do not show are equal: heads, activation, epsilon, place of the last norm."""
    x, config = torch.linspace(-4, 4, 65), tower.config
    activation = torch.equal(model.blocks[0].mlp.act(x), ACTIVATIONS[config.activation]()(x))
    heads = model.blocks[0].attn.num_heads == shape_facts(tower)[2]
    return activation and heads and model.norm.eps == config.norm_eps and isinstance(model.fc_norm, nn.Identity)
