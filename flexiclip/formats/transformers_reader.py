"""Reader of transformers folders: CLIP, SigLIP, and SigLIP 2 of a fixed resolution, whole models and image towers alone.

    flexiclip import clip-vit-base-patch32 --format transformers --output models/clip_b32
    flexiclip import siglip-base-patch16-224 --format siglip --output models/siglip_b16

transformers reads config.json, because the file omits values that equal the defaults. The weights are mapped here. The
tokenizer is the folder's own, or the sentencepiece model that --text names.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flexiclip.config import TextTowerConfig
from flexiclip.config.schema import TokenizerConfig, pair
from flexiclip.errors import UserError
from flexiclip.files import read_json
from flexiclip.formats.imported import Half, Imported, Source, State, image_half, reader, sentencepiece_config, text_half
from flexiclip.formats.layouts import CLIP_IMAGE, SCALARS, SIGLIP_IMAGE, TRANSFORMERS_TEXT, read_layout, set_grid
from flexiclip.formats.transformers_images import read_image_processor
from flexiclip.libraries import library_errors, require
from flexiclip.tensor_files import read_folder, read_license

if TYPE_CHECKING:
    from transformers import PretrainedConfig

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
    described = _describe(folder)
    tensors, notes = read_folder(folder)
    source = Source(_named_alike(tensors), str(folder))
    vision, words = getattr(described, "vision_config", described), getattr(described, "text_config", None)
    siglip = described.model_type.startswith("siglip")
    state, head = read_layout(source, SIGLIP_IMAGE if siglip else CLIP_IMAGE), source.take_head("visual_projection")
    set_grid(state, str(folder))
    image = image_half(state, head, vision.num_attention_heads, None, _settings(vision, folder))
    declared = pair(vision.image_size)
    preprocess, more = read_image_processor(folder, siglip, declared)
    imported = Imported(image, preprocess=preprocess, license=read_license(folder), notes=[*notes, *more])
    if pair(image.config.image_size) != declared:
        covered = pair(image.config.image_size)[0]
        imported.notes.append(f"images of {covered} px, what the patches cover; the folder says {declared[0]}")
    if words is not None:
        imported.text = _text_half(source, words, folder, siglip)
        imported.tokenizer = _tokenizer(folder, text, imported.text.config)
        imported.scalars = read_layout(source, SCALARS)
    elif text is not None:
        raise UserError(f"--text {text}: {folder} is an image tower alone, it has no text tower")
    source.finish()
    return imported


def _describe(folder: Path) -> PretrainedConfig:
    """Return the config of the folder, as transformers reads it. Raises UserError for models that cannot be imported."""
    require("transformers", "flexiclip[hf]", "--format transformers")
    from transformers import AutoConfig

    kind = read_json(folder / "config.json").get("model_type")
    if kind == "siglip2":
        raise UserError(f"{folder}: a SigLIP 2 NaFlex model, whose images keep their shape; import one of a fixed resolution")
    if kind not in _TYPES:
        raise UserError(f"{folder}: a {kind or 'nameless'} model; the kinds that can be imported are {', '.join(_TYPES)}")
    with library_errors(f"{folder}: transformers cannot read its config.json"):
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)


def _named_alike(tensors: State) -> State:
    """Add the prefix vision_model to the names of an image tower that is stored without it, and drop position numbers.

    transformers 5 stores an image tower alone without the prefix, and older versions store it with the prefix.
    """
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(".position_ids")}
    if any(name.startswith("vision_model.") for name in tensors):
        return tensors
    return {name if name.startswith("visual_projection.") else f"vision_model.{name}": t for name, t in tensors.items()}


def _settings(half: PretrainedConfig, folder: Path) -> dict[str, object]:
    """Return the settings activation and norm_eps of a half of the model."""
    if half.hidden_act not in _ACTIVATIONS:
        raise UserError(f"{folder}: its activation {half.hidden_act} is none of {', '.join(_ACTIVATIONS)}")
    return {"activation": _ACTIVATIONS[half.hidden_act], "norm_eps": float(half.layer_norm_eps)}


def _text_half(source: Source, config: PretrainedConfig, folder: Path, siglip: bool) -> Half[TextTowerConfig]:
    """Return the text tower."""
    state = read_layout(source, TRANSFORMERS_TEXT)
    head = source.take_head("text_model.head" if siglip else "text_projection", required=True)
    how = {"causal": False, "pool": "last"} if siglip else {"causal": True, "pool": "eos", "eos_id": _pooled_id(config)}
    return text_half(state, head, config.num_attention_heads, {"pad_mask": False, **how, **_settings(config, folder)})


def _tokenizer(folder: Path, text: Path | None, config: TextTowerConfig) -> TokenizerConfig:
    """Return the settings of the tokenizer: that of --text, or the folder's own."""
    context = config.context_length or 0
    if text is not None:
        return sentencepiece_config(text, context, config.vocab_size or 0)
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise UserError(f"{folder}: no tokenizer files there; add them, or give the sentencepiece model with --text FILE")
    return TokenizerConfig(kind="huggingface", path=str(folder), context_length=context)


def _pooled_id(half: PretrainedConfig) -> int | None:
    """Return the id of the token at which CLIP's text is pooled: the EOS of the config.

    For old configs it is None, which stands for the tokenizer's EOS. There transformers pools at the largest id.
    """
    return None if half.eos_token_id == _LEGACY_EOS else int(half.eos_token_id)
