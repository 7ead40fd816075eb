"""Writer of transformers folders: a model at one length, as the CLIPModel or SiglipModel that has its architecture.

    CLIPModel.from_pretrained(FOLDER)     class token, norm before the blocks, causal text, projections without bias, softmax loss
    SiglipModel.from_pretrained(FOLDER)   MAP head, no image projection, text that sees everything and pools its last token

A model that differs from both in any point raises an error that names the point.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flexiclip.config import TextTowerConfig
from flexiclip.config.schema import Size, pair
from flexiclip.formats.layouts import CLIP_IMAGE, SIGLIP_IMAGE, TRANSFORMERS_TEXT, set_rows, write_layout
from flexiclip.formats.written import (
    Encode,
    State,
    Written,
    check,
    projection_bias,
    projection_weight,
    scalars,
    shape_facts,
    text_of,
    write_json,
)
from flexiclip.libraries import require
from flexiclip.model_folder import LoadedModel
from flexiclip.models.exits import bake
from flexiclip.models.flexivit import FlexiViT
from flexiclip.models.text import TextTransformer

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers.modeling_outputs import BaseModelOutputWithPooling

Settings = dict[str, object]
FORMAT = "transformers"
_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}


def write(loaded: LoadedModel, seqhw: Size | None, folder: Path) -> Written:
    """Write config.json, model.safetensors and preprocessor_config.json for one length.

    Raises UserError with the reason if neither architecture can express the model.
    """
    transformers = require("transformers", "flexiclip[hf]", "this export")
    text = text_of(loaded.config.model, FORMAT)
    tower = bake(loaded.model.image_tower, seqhw)
    siglip = loaded.config.model.image.pool == "map"
    misfits = (_siglip_misfits if siglip else _clip_misfits)(loaded, text, tower)
    nearest = "SiglipModel" if siglip else "CLIPModel"
    check(FORMAT, {f"{reason} ({nearest} is the nearest)": holds for reason, holds in misfits.items()})
    settings = {"text_config": _text_settings(loaded), "vision_config": _image_settings(tower)}
    if siglip:
        model = transformers.SiglipModel(transformers.SiglipConfig(**settings))
        state = _siglip_state(loaded, tower)
    else:
        model = transformers.CLIPModel(transformers.CLIPConfig(**settings, projection_dim=loaded.config.model.embed_dim))
        state = _clip_state(loaded, tower)
    model.load_state_dict(state, strict=True)
    model.save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", _preprocess(loaded, siglip))
    opened = type(model).from_pretrained(folder).eval()
    notes = ["the tokenizer is not part of the folder: tokenize with flexiclip's (MODEL/tokenizer)"]
    if loaded.config.tokenizer.kind == "huggingface":
        loaded.tokenizer.save(folder)
        notes = []
    usage = f'```python\nmodel = transformers.{type(model).__name__}.from_pretrained("{folder.name}").eval()\n```'
    return Written(usage, _features(opened.get_image_features), _features(opened.get_text_features), tuple(notes))


def _features(method: Callable[[Tensor], Tensor | BaseModelOutputWithPooling]) -> Encode:
    """Wrap get_image_features or get_text_features so that the result is always a tensor.

    In later versions these methods return an output whose pooler_output is that tensor.
    """

    def encode(x: Tensor) -> Tensor:
        found = method(x)
        features = found if isinstance(found, Tensor) else found.pooler_output
        assert features is not None, "the model pools its tokens"
        return features

    return encode


def _clip_misfits(loaded: LoadedModel, text: TextTowerConfig, tower: FlexiViT) -> dict[str, bool]:
    """Return the reasons why CLIPModel cannot express a model, and whether each of them applies."""
    image = tower.config
    return _misfits(text, tower) | {
        f"its image tower pools by {image.pool}, not by a class token": image.pool != "tok",
        "its image tower has no norm before the blocks (model.image.pre_norm=false)": not image.pre_norm,
        "its text tower is not causal (model.text.causal=false)": not text.causal,
        f"its text tower has model.text.pool={text.pool}, not eos": text.pool != "eos",
        "its projections have a bias": image.projection_bias or text.projection_bias,
        "it has a logit_bias": loaded.model.logit_bias is not None,
        "its EOS is 2, which transformers takes for the mark of an old model": loaded.tokenizer.eos_id == 2,
    }


def _siglip_misfits(loaded: LoadedModel, text: TextTowerConfig, tower: FlexiViT) -> dict[str, bool]:
    """Return the reasons why SiglipModel cannot express a model, and whether each of them applies."""
    image = tower.config
    return _misfits(text, tower) | {
        "its image tower has a norm before the blocks (model.image.pre_norm=true)": image.pre_norm,
        "its image tower has a projection (model.image.projection=linear)": image.projection == "linear",
        "its text tower is causal (model.text.causal=true)": text.causal,
        "its text tower hides padding from attention (model.text.pad_mask=true)": text.pad_mask,
        f"its text tower has model.text.pool={text.pool}, not last": text.pool != "last",
    }


def _misfits(text: TextTowerConfig, tower: FlexiViT) -> dict[str, bool]:
    """Return the reasons that both architectures share."""
    (height, width), (p, q) = tower.image_size, pair(tower.config.base_patch_size)
    return {
        f"its text tower is of another library (model.text.kind={text.kind})": text.kind != "transformer",
        f"its images of {height}x{width} in patches of {p}x{q} are not square": height != width or p != q,
    }


def _image_settings(tower: FlexiViT) -> Settings:
    """Return the vision_config for a baked tower."""
    return _tower_settings(tower) | {"image_size": tower.image_size[0], "patch_size": pair(tower.config.base_patch_size)[0]}


def _text_settings(loaded: LoadedModel) -> Settings:
    """Return the text_config for the text tower."""
    tower = loaded.model.text_tower
    assert isinstance(tower, TextTransformer)
    return _tower_settings(tower) | {
        "vocab_size": tower.token_embedding.num_embeddings,
        "max_position_embeddings": tower.context_length,
        "projection_size": loaded.config.model.embed_dim,  # the name in SigLIP's config
        "pad_token_id": tower.pad_id,
        "eos_token_id": tower.eos_id,
        "bos_token_id": None,
    }


def _tower_settings(tower: FlexiViT | TextTransformer) -> Settings:
    """Return the settings that both configs have."""
    width, depth, heads, hidden = shape_facts(tower)
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": hidden,
        "hidden_act": _ACTIVATIONS[tower.config.activation],
        "layer_norm_eps": tower.config.norm_eps,
    }


def _clip_state(loaded: LoadedModel, tower: FlexiViT) -> State:
    model, vision = loaded.model, dict(tower.state_dict())
    set_rows(vision, bias_apart=False, class_row=True)
    return {
        "logit_scale": scalars(model)["logit_scale"].reshape(()),
        "visual_projection.weight": projection_weight(model.image_projection, tower.width),
        "text_projection.weight": projection_weight(model.text_projection, model.text_tower.width),
        **write_layout(vision, CLIP_IMAGE),
        **write_layout(model.text_tower.state_dict(), TRANSFORMERS_TEXT),
    }


def _siglip_state(loaded: LoadedModel, tower: FlexiViT) -> State:
    model, vision = loaded.model, dict(tower.state_dict())
    set_rows(vision, bias_apart=True, class_row=False)
    return {
        "logit_bias": torch.zeros(1),
        **scalars(model),
        "text_model.head.weight": projection_weight(model.text_projection, model.text_tower.width),
        "text_model.head.bias": projection_bias(model.text_projection, loaded.config.model.embed_dim),
        **write_layout(vision, SIGLIP_IMAGE),
        **write_layout(model.text_tower.state_dict(), TRANSFORMERS_TEXT),
    }


def _preprocess(loaded: LoadedModel, siglip: bool) -> Settings:
    """Return transformers' settings of the image preparation."""
    preprocess = loaded.transform.preprocess
    height, width = loaded.transform.image_size
    squash = preprocess.resize == "squash"
    return {
        "image_processor_type": "SiglipImageProcessor" if siglip and squash else "CLIPImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width} if squash else {"shortest_edge": height},
        "do_center_crop": not squash,
        "crop_size": {"height": height, "width": width},
        "resample": {"bilinear": 2, "bicubic": 3}[preprocess.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
        "do_convert_rgb": True,
    }
