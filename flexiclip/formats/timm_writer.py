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

from flexiclip.config import ImageTowerConfig
from flexiclip.config.schema import Size, pair
from flexiclip.errors import UserError
from flexiclip.formats.written import (
    State,
    Written,
    mlp_ratio,
    projection_bias,
    projection_weight,
    refuse,
    renamed,
    shape_facts,
    square,
    write_json,
    write_weights,
)
from flexiclip.model_folder import LoadedModel
from flexiclip.models.exits import bake
from flexiclip.models.flexivit import FlexiViT
from flexiclip.models.transformer import ACTIVATIONS

_EPSILONS = {1e-6: "vit_base_patch16_224", 1e-5: "vit_base_patch16_clip_224"}  # architectures whose norms have this epsilon
POOLS = {"tok": "token", "gap": "avg", "map": "map"}
_NAMES = {
    "map_head.probe": "attn_pool.latent",
    "map_head.": "attn_pool.",
}


def write(loaded: LoadedModel, seqhw: Size | None, folder: Path) -> Written:
    """Write config.json and model.safetensors for one length.

    Raises UserError with the reason if timm cannot express the tower.
    """
    timm = require_timm()
    tower, projection = bake(loaded.model.image_tower, seqhw), loaded.model.image_projection
    has_head = isinstance(projection, nn.Linear)
    outputs = loaded.config.model.embed_dim if has_head else 0
    state = tower_state(tower)
    if has_head:
        state["head.weight"] = projection_weight(projection, tower.width)
        state["head.bias"] = projection_bias(projection, outputs)
    write_config(tower, loaded, outputs, folder)
    write_weights(folder / "model.safetensors", state)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    model.load_state_dict(state, strict=True)  # timm's own loading skips tensors that do not fit
    load = f'```python\nmodel = timm.create_model("local-dir:{folder.name}", pretrained=True).eval()\n```\n\n'
    usage = load + "Images as `timm.data.create_transform(**timm.data.resolve_model_data_config(model))` makes them."
    return Written(usage, model, None)


def require_timm() -> Any:
    """Return the timm package. Raises UserError with the pip command if it is not installed."""
    try:
        import timm
    except ImportError:
        raise UserError("this export needs the package timm: run `pip install timm`") from None
    return timm


def write_config(tower: FlexiViT, loaded: LoadedModel, outputs: int, folder: Path) -> None:
    """Write timm's config.json for a baked tower. `outputs` is the number of outputs of the classifier, or 0 without one."""
    config, preprocess = tower.config, loaded.transform.preprocess
    if config.norm_eps not in _EPSILONS:
        raise refuse("timm", f"norm_eps={config.norm_eps}, and timm's architectures have {' or '.join(map(str, _EPSILONS))}")
    height, width = tower.image_size
    pretrained = {
        "input_size": [3, height, width],
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "interpolation": preprocess.interpolation,
        "crop_pct": 1.0,
        "crop_mode": "squash" if preprocess.resize == "squash" else "center",
        "fixed_input_size": True,
        "num_classes": outputs,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    described = {
        "architecture": _EPSILONS[config.norm_eps],
        "num_classes": outputs,
        "num_features": tower.width,
        "global_pool": POOLS[config.pool],
        "model_args": model_args(tower, outputs),
        "pretrained_cfg": pretrained,
    }
    write_json(folder / "config.json", described)


def model_args(tower: FlexiViT, outputs: int) -> dict[str, Any]:
    """The arguments of timm's VisionTransformer for a baked tower."""
    config = tower.config
    width, depth, heads, hidden = shape_facts(tower)
    return {
        "img_size": square(tower.image_size),
        "patch_size": square(pair(config.base_patch_size)),
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


def tower_state(tower: FlexiViT) -> State:
    """The state dict of timm's VisionTransformer for a baked tower, without a classifier."""
    state = renamed(tower.state_dict(), _NAMES)
    kernel, bias = state.pop("kernel"), state.pop("bias", torch.zeros(tower.width))
    posemb = state.pop("posemb").flatten(2).transpose(1, 2)
    if tower.config.pre_norm:  # timm's patch embedding then has no bias, so the positions take it over
        posemb = posemb + bias
    else:
        state["patch_embed.proj.bias"] = bias
    state |= {"patch_embed.proj.weight": kernel, "pos_embed": posemb}
    if "cls" in state:
        state["cls_token"] = state.pop("cls")
    return state


def registered_name(tower: FlexiViT) -> str | None:
    """The name of timm's own architecture that equals this tower at this length, or None if there is none.

    The pool may differ, because it is an argument of timm's models.
    """
    timm = require_timm()
    config: ImageTowerConfig = tower.config
    (height, width), (p, q) = tower.image_size, pair(config.base_patch_size)
    if height != width or p != q or config.pool == "tok":
        return None
    wanted = {name: tensor.shape for name, tensor in tower_state(tower).items()}
    for name in timm.list_models(f"vit_*_patch{p}_siglip*_{height}"):
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0, global_pool=POOLS[config.pool])
        same = {key: tensor.shape for key, tensor in model.state_dict().items()} == wanted
        if same and model.blocks[0].attn.num_heads == tower.blocks[0].attn.heads and _same_functions(model, config):  # type: ignore[union-attr]
            return str(name)
    return None


def _same_functions(model: Any, config: ImageTowerConfig) -> bool:
    """Whether the settings that shapes do not show are equal: the activation, the epsilon, and the place of the last norm."""
    x = torch.linspace(-4, 4, 65)
    activation = torch.equal(model.blocks[0].mlp.act(x), ACTIVATIONS[config.activation]()(x))
    return activation and model.norm.eps == config.norm_eps and isinstance(model.fc_norm, nn.Identity)
