"""Writer of open_clip's folders: a model at one length, as open_clip_config.json and open_clip_model.safetensors.

    open_clip.create_model("local-dir:FOLDER")

open_clip's own ViT has a class token, an optional norm before the blocks, and a projection without bias. An image tower
with another pool is written through timm: by the name of an architecture if timm has one of the same shape, and otherwise
as timm's settings in config.json.

The text tower may be our own transformer if its mask is one that open_clip has (causal or none), one of open_clip's own
text towers, or a Hugging Face encoder of a kind that open_clip wraps, whose settings are in config.json too.

open_clip looks config.json up under the names in PLACES, which are not relative to the folder. They are its absolute path,
until `name_on_hub` replaces them by the name of a repository on the Hugging Face hub.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from flexiclip.config import TextTowerConfig
from flexiclip.config.schema import Size, pair
from flexiclip.files import read_json
from flexiclip.formats import timm_writer as timm
from flexiclip.formats.imported import one_side
from flexiclip.formats.layouts import OPEN_CLIP_IMAGE, OPEN_CLIP_TEXT, set_rows, write_layout
from flexiclip.formats.written import (
    State,
    Written,
    colours,
    mlp_ratio,
    projection_weight,
    refuse,
    scalars,
    shape_facts,
    text_of,
    write_json,
    write_weights,
)
from flexiclip.model_folder import LoadedModel
from flexiclip.model_source import OPEN_CLIP_CONFIG
from flexiclip.models.exits import bake
from flexiclip.models.flexivit import FlexiViT
from flexiclip.models.text import TextTransformer
from flexiclip.models.text.huggingface import HuggingFaceText
from flexiclip.models.text.open_clip import OpenClipText

Settings = dict[str, object]
FORMAT = "open_clip"
CONFIG = timm.CONFIG
PLACES = ("vision_cfg.timm_model_name", "text_cfg.hf_model_name", "text_cfg.hf_tokenizer_name")
"""The settings of open_clip_config.json, below model_cfg, that name the place of config.json and of the tokenizer's files."""

_POOLERS = {"mean": "mean_pooler", "cls": "cls_last_hidden_state_pooler"}


def write(loaded: LoadedModel, seqhw: Size | None, folder: Path) -> Written:
    """Write configuration and weights for one length. Raises UserError with the reason if open_clip cannot express the model."""
    import open_clip

    config = loaded.config.model
    text = text_of(config, FORMAT)
    tower = bake(loaded.model.image_tower, seqhw)
    native = config.image.pool == "tok" and not config.image.projection_bias
    text_cfg, text_state, quick_text, notes = _text_half(loaded, text, folder)
    quick_image = config.image.activation == "quick_gelu"
    if native and quick_text is not None and quick_image != quick_text:
        raise refuse(FORMAT, "one tower has quick_gelu and the other has not, and open_clip has one setting for both")
    vision_cfg, vision_state = _native(loaded, tower) if native else _through_timm(loaded, tower, folder)
    model_cfg = {
        "embed_dim": config.embed_dim,
        "custom_text": True,
        "quick_gelu": bool(quick_text or (native and quick_image)),
        "vision_cfg": vision_cfg,
        "text_cfg": text_cfg,
    }
    if loaded.model.logit_bias is not None:
        model_cfg["init_logit_bias"] = float(loaded.model.logit_bias.detach())
    images = {"resize_mode": loaded.transform.preprocess.resize, "size": one_side(*loaded.transform.image_size)}
    write_json(folder / OPEN_CLIP_CONFIG, {"model_cfg": model_cfg, "preprocess_cfg": colours(loaded) | images})
    single = {name: tensor.reshape(()) for name, tensor in scalars(loaded.model).items()}
    parts = {"visual": vision_state, "text": text_state}
    state = single | {f"{part}.{name}": t for part, tensors in parts.items() for name, t in tensors.items()}
    write_weights(folder / "open_clip_model.safetensors", state)
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    model.load_state_dict(state, strict=True)
    if places := places_of(folder):
        names = " and ".join(f"model_cfg.{place}" for place in places)
        fix = "change that when you move the folder, or export with --hub ORG/REPO"
        notes = (*notes, f"{OPEN_CLIP_CONFIG} names this folder by its path in {names}: {fix}")
    return Written(usage_of(f"local-dir:{folder.name}"), model.encode_image, model.encode_text, notes)


def usage_of(name: str) -> str:
    """Return how open_clip opens the model of that name, as Markdown."""
    return f'```python\nmodel, preprocess = open_clip.create_model_from_pretrained("{name}")\n```'


def places_of(folder: Path) -> list[str]:
    """Return those of PLACES in which a written folder names itself."""
    own = str(folder.resolve())
    return [place for place in PLACES if _setting(read_json(folder / OPEN_CLIP_CONFIG), place).removeprefix("local-dir:") == own]


def name_on_hub(written: Written, folder: Path, repository: str) -> Written:
    """Replace the folder's path by the name of the repository that the folder will be uploaded to: ORG/REPO."""
    described: dict[str, Any] = read_json(folder / OPEN_CLIP_CONFIG)
    for place in places_of(folder):
        section, key = place.split(".")
        described["model_cfg"][section][key] = f"hf-hub:{repository}" if key == "timm_model_name" else repository
    write_json(folder / OPEN_CLIP_CONFIG, described)
    others = [note for note in written.notes if not note.startswith(OPEN_CLIP_CONFIG)]
    notes = (*others, f"upload the folder to {repository}, which its files name: `hf upload {repository} {folder}`")
    return replace(written, usage=usage_of(f"hf-hub:{repository}"), notes=notes)


def _setting(described: dict[str, Any], place: str) -> str:
    section, key = place.split(".")
    return str(described["model_cfg"][section].get(key, ""))


def _native(loaded: LoadedModel, tower: FlexiViT) -> tuple[Settings, State]:
    """Return vision_cfg and weights of open_clip's own VisionTransformer."""
    config = tower.config
    width, depth, heads, hidden = shape_facts(tower)
    settings = {
        "image_size": one_side(*tower.image_size),
        "patch_size": one_side(*pair(config.base_patch_size)),
        "layers": depth,
        "width": width,
        "head_width": width // heads,
        "mlp_ratio": mlp_ratio(width, hidden),
        "no_ln_pre": not config.pre_norm,
        "pool_type": "tok",
    } | _functions(config.activation, config.norm_eps)
    state = dict(tower.state_dict())
    set_rows(state, bias_apart=False, class_row=True)
    return settings, write_layout(state, OPEN_CLIP_IMAGE) | {"proj": projection_weight(loaded.model.image_projection, width).T}


def _through_timm(loaded: LoadedModel, tower: FlexiViT, folder: Path) -> tuple[Settings, State]:
    """Return vision_cfg and weights of open_clip's wrapper of timm's models."""
    config, projection = tower.config, loaded.model.image_projection
    name = timm.registered_name(tower)
    if name is None:
        text = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}  # of a Hugging Face encoder; no key is in both
        write_json(folder / CONFIG, text | timm.config_of(tower, loaded, 0))
        name = f"local-dir:{folder.resolve()}"
    linear = isinstance(projection, nn.Linear)
    settings: Settings = {
        "image_size": one_side(*tower.image_size),
        "timm_model_name": name,
        "timm_pool": timm.POOLS[config.pool],
        "timm_proj": "linear" if linear else "none",
        "timm_proj_bias": config.projection_bias,
    }
    state = {f"trunk.{key}": tensor for key, tensor in timm.tower_state(tower).items()}
    if linear:
        state |= {f"head.proj.{key}": tensor for key, tensor in projection.state_dict().items()}
    return settings, state


def _text_half(loaded: LoadedModel, text: TextTowerConfig, folder: Path) -> tuple[Settings, State, bool | None, tuple[str, ...]]:
    """Return text_cfg, the weights, whether the tower needs quick_gelu (None if that has no effect), and notes."""
    if text.kind == "huggingface":
        return *_wrapped(loaded, text, folder), None, ()
    note = "open_clip.get_tokenizer does not know this model's tokenizer: tokenize with flexiclip's (MODEL/tokenizer)"
    notes = () if loaded.config.tokenizer.kind == "clip" else (note,)
    if text.kind == "transformer":
        return *_own_text(loaded, text), text.activation == "quick_gelu", notes
    tower = loaded.model.text_tower
    assert isinstance(tower, OpenClipText)
    if isinstance(loaded.model.text_projection, nn.Linear):
        raise refuse(FORMAT, "a second projection (model.text.projection=linear) follows that of open_clip's text tower")
    if tower.model_cfg["text_cfg"].get("hf_model_name"):
        raise refuse(FORMAT, "its text tower wraps a Hugging Face encoder within open_clip; use model.text.kind=huggingface")
    return dict(tower.model_cfg["text_cfg"]), dict(tower.text.state_dict()), bool(tower.model_cfg.get("quick_gelu")), ()


def _own_text(loaded: LoadedModel, text: TextTowerConfig) -> tuple[Settings, State]:
    """Return text_cfg and weights of open_clip's TextTransformer."""
    if text.pool not in ("eos", "last"):
        raise refuse(FORMAT, f"its text tower has model.text.pool={text.pool}, open_clip's pools are eos and last")
    if text.pad_mask and not text.causal:
        raise refuse(
            FORMAT, "its text tower hides padding from attention (model.text.pad_mask), open_clip's is causal or sees all"
        )
    tower = loaded.model.text_tower
    assert isinstance(tower, TextTransformer)
    width, depth, heads, hidden = shape_facts(tower)
    projection = loaded.model.text_projection
    settings = {
        "context_length": tower.context_length,
        "vocab_size": tower.token_embedding.num_embeddings,
        "width": width,
        "heads": heads,
        "layers": depth,
        "mlp_ratio": mlp_ratio(width, hidden),
        "no_causal_mask": not text.causal,
        "pool_type": text.pool,
        "pad_id": tower.pad_id,
        "eos_id": tower.eos_id,
        "proj_type": "linear" if isinstance(projection, nn.Linear) else "none",
        "proj_bias": text.projection_bias,
    } | _functions(text.activation, text.norm_eps)
    state = write_layout(tower.state_dict(), OPEN_CLIP_TEXT)
    if isinstance(projection, nn.Linear):
        linear = {f"text_projection.{name}": tensor for name, tensor in projection.state_dict().items()}
        state |= linear if text.projection_bias else {"text_projection": projection.weight.detach().T}
    return settings, state


def _wrapped(loaded: LoadedModel, text: TextTowerConfig, folder: Path) -> tuple[Settings, State]:
    """Return text_cfg and weights of open_clip's HFTextEncoder, and write the encoder's config and tokenizer into the folder."""
    from open_clip.hf_configs import arch_dict

    tower = loaded.model.text_tower
    assert isinstance(tower, HuggingFaceText)
    encoder, projection = tower.encoder, loaded.model.text_projection
    kind = encoder.config.model_type
    if kind not in arch_dict:
        raise refuse(FORMAT, f"its text tower is a {kind} encoder, open_clip wraps {', '.join(arch_dict)}")
    if text.pool not in _POOLERS or text.projection_bias:
        raise refuse(FORMAT, f"open_clip pools a Hugging Face encoder by {' or '.join(_POOLERS)}, and projects without bias")
    if tower.pad_id != encoder.config.pad_token_id:
        raise refuse(FORMAT, "its text tower pads with another id than its encoder's config names")
    encoder.config.save_pretrained(folder)
    loaded.tokenizer.save(folder)
    settings = {
        "context_length": loaded.tokenizer.context_length,
        "hf_model_name": str(folder.resolve()),
        "hf_model_pretrained": False,
        "hf_tokenizer_name": str(folder.resolve()),
        "hf_pooler_type": _POOLERS[text.pool],
        "hf_proj_type": "linear" if isinstance(projection, nn.Linear) else None,
    }
    state = {f"transformer.{name}": tensor for name, tensor in encoder.state_dict().items()}
    return settings, state | {f"proj.{name}": tensor for name, tensor in projection.state_dict().items()}


def _functions(activation: str, norm_eps: float) -> Settings:
    """Return the settings of activation and norms, except for quick_gelu, which is a setting of the whole model."""
    tanh: Settings = {"act_kwargs": {"approximate": "tanh"}} if activation == "gelu_tanh" else {}
    return {"norm_kwargs": {"eps": norm_eps}, **tanh}
