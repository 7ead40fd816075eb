"""Reader of transformers folders: CLIP, SigLIP, and SigLIP 2 of a fixed resolution, whole models and image towers alone.

    flexiclip import clip-vit-base-patch32 --format transformers --output models/clip_b32
    flexiclip import siglip-base-patch16-224 --format siglip --output models/siglip_b16

transformers reads config.json, because the file omits values that equal the defaults. The weights are mapped here. The
tokenizer is the folder's own, or the sentencepiece model that --text names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from flexiclip.config import TextTowerConfig
from flexiclip.config.schema import TokenizerConfig, pair
from flexiclip.errors import UserError
from flexiclip.files import short_reason
from flexiclip.formats.imported import (
    Imported,
    Source,
    State,
    fold_class_position,
    image_config,
    joint_dim,
    prefixed,
    projection_settings,
    reader,
    sentencepiece_config,
    square_grid,
    text_config,
)
from flexiclip.formats.transformers_images import read_image_processor
from flexiclip.tensor_files import beneath, read_folder, read_json, read_license

_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
_TYPES = ("clip", "siglip", "clip_vision_model", "siglip_vision_model")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "spiece.model", "vocab.json", "tokenizer.model")
_LEGACY_EOS = 2  # with this EOS, in CLIP configs from before 2023, transformers pools at the largest id


@reader
def import_transformers(folder: Path, text: Path | None = None) -> Imported:
    """Read a folder with config.json and weights.

    `text` is a sentencepiece model to use instead of the folder's tokenizer. Raises UserError if the model cannot be
    imported.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: not a folder; a Hugging Face model is a folder with config.json and model.safetensors")
    described = _describe(folder)
    tensors, notes = read_folder(folder)
    source = Source(_named_alike(tensors), str(folder))
    source.drop(*(f"{half}_model.embeddings.position_ids" for half in ("vision", "text")))
    siglip = described.model_type.startswith("siglip")
    image_state = _siglip_image(source) if siglip else _clip_image(source)
    head = beneath(source.take_layer("visual_projection", "head"), "head.") if "visual_projection.weight" in source else {}
    vision = getattr(described, "vision_config", described)
    image = image_config(image_state, vision.num_attention_heads, **_settings(vision, folder), **projection_settings(head))
    declared = _pixels(vision.image_size)
    preprocess, more = read_image_processor(folder, siglip, declared)
    imported = Imported(
        image=image,
        embed_dim=len(head["weight"]) if head else vision.hidden_size,
        state=prefixed(image_state, "image_tower") | prefixed(head, "image_projection"),
        preprocess=preprocess,
        license=read_license(folder),
        notes=[*notes, *more],
    )
    if pair(image.image_size) != declared:
        covered = pair(image.image_size)[0]
        imported.notes.append(f"images of {covered} px, what the patches cover; the folder says {declared[0]}")
    if hasattr(described, "text_config"):
        _add_text(imported, source, described, folder, text, head)
    elif text is not None:
        raise UserError(f"--text {text}: {folder} is an image tower alone, it has no text tower")
    source.finish()
    return imported


def _describe(folder: Path) -> Any:
    """The config of the folder, as transformers reads it. Raises UserError for kinds of models that cannot be imported."""
    try:
        from transformers import AutoConfig
    except ImportError:
        raise UserError("--format transformers needs transformers: run `pip install 'flexiclip[hf]'`") from None
    kind = read_json(folder / "config.json").get("model_type")
    if kind == "siglip2":
        raise UserError(f"{folder}: a SigLIP 2 NaFlex model, whose images keep their shape; import one of a fixed resolution")
    if kind not in _TYPES:
        raise UserError(f"{folder}: a {kind or 'nameless'} model; the kinds that can be imported are {', '.join(_TYPES)}")
    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # transformers and huggingface_hub raise errors of many types
        raise UserError(f"{folder}: transformers cannot read its config.json: {short_reason(error)}") from None


def _pixels(size: Any) -> tuple[int, int]:
    """The (height, width) of a config that gives one number or two."""
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return int(height), int(width)


def _named_alike(tensors: State) -> State:
    """Add the prefix vision_model to the names of an image tower that is stored without it.

    transformers 5 stores an image tower alone without the prefix, and older versions store it with the prefix.
    """
    if any(name.startswith("vision_model.") for name in tensors):
        return tensors
    return {name if name.startswith("visual_projection.") else f"vision_model.{name}": t for name, t in tensors.items()}


def _settings(half: Any, folder: Path) -> dict[str, Any]:
    """The settings activation and norm_eps of a half of the model."""
    if half.hidden_act not in _ACTIVATIONS:
        raise UserError(f"{folder}: its activation {half.hidden_act} is none of {', '.join(_ACTIVATIONS)}")
    return {"activation": _ACTIVATIONS[half.hidden_act], "norm_eps": float(half.layer_norm_eps)}


def _clip_image(source: Source) -> State:
    """The state of CLIP's image tower by our names."""
    name = "vision_model.embeddings"
    positions = source.take(f"{name}.position_embedding.weight")
    cls, positions = fold_class_position(source.take(f"{name}.class_embedding"), positions)
    state = {"kernel": source.take(f"{name}.patch_embedding.weight"), "cls": cls, "posemb": square_grid(positions, source.what)}
    state |= source.take_layer("vision_model.pre_layrnorm", "norm_pre")
    return state | _layers(source, "vision_model") | source.take_layer("vision_model.post_layernorm", "norm")


def _siglip_image(source: Source) -> State:
    """The state of SigLIP's image tower by our names."""
    name = "vision_model.embeddings"
    state = {
        "kernel": source.take(f"{name}.patch_embedding.weight"),
        "bias": source.take(f"{name}.patch_embedding.bias"),
        "posemb": square_grid(source.take(f"{name}.position_embedding.weight"), source.what),
    }
    state |= _layers(source, "vision_model") | source.take_layer("vision_model.post_layernorm", "norm")
    head = "vision_model.head"
    state["map_head.probe"] = source.take(f"{head}.probe")
    for part in ("weight", "bias"):
        query, key_value = source.take(f"{head}.attention.in_proj_{part}").tensor_split([_third(state)])
        state |= {f"map_head.q.{part}": query.contiguous(), f"map_head.kv.{part}": key_value.contiguous()}
    for theirs, ours in (("attention.out_proj", "proj"), ("layernorm", "norm"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):
        state |= source.take_layer(f"{head}.{theirs}", f"map_head.{ours}")
    return state


def _third(state: State) -> int:
    """The number of rows of the query in a fused projection, which is the width."""
    return len(state["kernel"])


def _layers(source: Source, half: str) -> State:
    """The state of the blocks of one half by our names."""
    state: State = {}
    depth = 0
    while f"{half}.encoder.layers.{depth}.layer_norm1.weight" in source:
        theirs, ours = f"{half}.encoder.layers.{depth}", f"blocks.{depth}"
        for part in ("weight", "bias"):
            qkv = [source.take(f"{theirs}.self_attn.{name}_proj.{part}") for name in ("q", "k", "v")]
            state[f"{ours}.attn.qkv.{part}"] = torch.cat(qkv)
        for layer, name in (
            ("layer_norm1", "norm1"),
            ("self_attn.out_proj", "attn.proj"),
            ("layer_norm2", "norm2"),
            ("mlp.fc1", "mlp.fc1"),
            ("mlp.fc2", "mlp.fc2"),
        ):
            state |= source.take_layer(f"{theirs}.{layer}", f"{ours}.{name}")
        depth += 1
    return state


def _add_text(imported: Imported, source: Source, described: Any, folder: Path, text: Path | None, image_head: State) -> None:
    """Add the text half and the scalars to `imported`."""
    half, siglip = described.text_config, described.model_type == "siglip"
    name = "text_model.embeddings"
    state = {
        "token_embedding.weight": source.take(f"{name}.token_embedding.weight"),
        "posemb": source.take(f"{name}.position_embedding.weight")[None],
    }
    state |= _layers(source, "text_model") | source.take_layer("text_model.final_layer_norm", "norm")
    head = beneath(source.take_layer("text_model.head" if siglip else "text_projection", "head"), "head.")
    how = {"causal": False, "pool": "last"} if siglip else {"causal": True, "pool": "eos", "eos_id": _pooled_id(half)}
    settings = _settings(half, folder) | projection_settings(head)
    config = text_config(state, half.num_attention_heads, pad_mask=False, **how, **settings)
    imported.text = config
    imported.tokenizer = _tokenizer(folder, text, config)
    imported.state |= prefixed(state, "text_tower") | prefixed(head, "text_projection")
    imported.embed_dim = joint_dim(len(imported.state["image_tower.kernel"]), image_head, config.width or 0, head)
    for scalar in ("logit_scale", "logit_bias"):
        if scalar in source:
            imported.state[scalar] = source.take(scalar).reshape(1)


def _tokenizer(folder: Path, text: Path | None, config: TextTowerConfig) -> TokenizerConfig:
    """The settings of the tokenizer: that of --text, or the folder's own."""
    context = config.context_length or 0
    if text is not None:
        return sentencepiece_config(text, context, config.vocab_size or 0)
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise UserError(f"{folder}: no tokenizer files there; add them, or give the sentencepiece model with --text FILE")
    return TokenizerConfig(kind="huggingface", path=str(folder), context_length=context)


def _pooled_id(half: Any) -> int | None:
    """The id of the token at which CLIP's text is pooled: the EOS of the config.

    For old configs it is None, which stands for the tokenizer's EOS. There transformers pools at the largest id.
    """
    return None if half.eos_token_id == _LEGACY_EOS else int(half.eos_token_id)
