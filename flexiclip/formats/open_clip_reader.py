"""Reader of open_clip's ViT models: CLIP's own architecture, and models such as SigLIP whose image half is timm's.

    flexiclip import ViT-B-32-quickgelu/openai --format open_clip --output models/clip_b32
    flexiclip import ViT-B-16-SigLIP/webli.safetensors --format open_clip --text c4_en.model --output models/siglip_b16

Both towers and the tokenizer are imported. open_clip builds the model and loads the weights. The settings are then read
from its modules, so our model computes what open_clip's computes: QuickGELU, the norm before the blocks, and the mask and
the pool of the text tower. A text tower that is not a CLIP transformer (a Hugging Face encoder, CoCa's class token) stays
a module of open_clip, together with its projection.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from flexiclip.config import ImageTowerConfig, TextTowerConfig
from flexiclip.config.schema import PreprocessConfig, TokenizerConfig, pair
from flexiclip.errors import UserError
from flexiclip.formats import timm_reader as timm
from flexiclip.formats.imported import (
    Half,
    Imported,
    Source,
    State,
    image_half,
    preprocess_config,
    reader,
    sentencepiece_config,
    text_half,
)
from flexiclip.formats.layouts import OPEN_CLIP_IMAGE, OPEN_CLIP_TEXT, SCALARS, read_layout, set_grid
from flexiclip.libraries import library_errors, quiet_logs
from flexiclip.models.text.open_clip_load import (
    CONTEXT,
    VOCABULARY,
    ModelConfig,
    check_pretrained,
    model_config,
    require_pretrained,
    whole_number,
    with_weights,
)
from flexiclip.tensor_files import beneath, read_license

if TYPE_CHECKING:
    from open_clip.hf_model import HFTextEncoder
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import TextTransformer, Transformer, VisionTransformer

_OPENAI_LICENSE = "MIT"


@reader
def import_open_clip(name: str, weights: str | None = None, text: Path | None = None) -> Imported:
    """Read a model.

    `name` is the name of an architecture, and `weights` is a tag or a file. A name that is hf-hub:ORG/REPO or
    local-dir:FOLDER has its own weights. `text` is a sentencepiece model to use instead of the model's own tokenizer.
    Raises UserError if the model cannot be imported.
    """
    source = name if weights is None else f"{name}/{weights}"
    require_pretrained(name, weights, source)
    described = model_config(name, source)
    check_pretrained(name, weights, source)
    with quiet_logs(), library_errors(f"{source}: open_clip cannot load it"):  # before loading, it warns of random weights
        model, notes = with_weights(name, weights, described, source)
    model.eval()
    tensors = dict(model.state_dict())
    scalars = {key: tensors.pop(key) for key in ("logit_scale", "logit_bias") if key in tensors}
    image = _image_half(model.visual, beneath(tensors, "visual."), source)
    covered, declared = pair(image.config.image_size), tuple(model.visual.image_size)
    if covered != declared:
        notes.append(f"images of {covered[0]} px, what the patches cover; open_clip feeds {declared[0]} and drops the rest")
    half = _text_half(model.text, beneath(tensors, "text."), source)
    if half is None:  # open_clip's own module, which includes the projection
        context = whole_number(described["text_cfg"], "context_length", CONTEXT)
        config = TextTowerConfig(kind="open_clip", name=source, projection="none", context_length=context)
        half = Half(config, {f"text.{key}": t for key, t in beneath(tensors, "text.").items()}, {}, described["embed_dim"])
    from_file = weights is not None and Path(weights).is_file()
    cfg = model.visual.preprocess_cfg | (_published_preprocess(name) if from_file else {})
    return Imported(
        image,
        half,
        read_layout(Source(scalars, source), SCALARS),
        _tokenizer(name, described, text),
        _preprocess(cfg, source),
        license=_license(name, weights),
        notes=notes,
    )


def _image_half(visual: TimmModel | VisionTransformer, tensors: State, what: str) -> Half[ImageTowerConfig]:
    """Return the image tower, which may be timm's or open_clip's own VisionTransformer."""
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer
    from timm.models.vision_transformer import VisionTransformer as TimmTransformer

    source = Source(tensors, what)
    kind = visual.trunk if isinstance(visual, TimmModel) else visual
    if isinstance(kind, TimmTransformer):
        trunk = Source(beneath(tensors, "trunk."), what)
        settings = timm.settings_of(kind, what)
        state, head = timm.tower_state(trunk), trunk.take_head("head")
        trunk.finish()
        source = Source(beneath(tensors, "head."), what)
        head |= source.take_head("proj")
    elif isinstance(kind, VisionTransformer):
        if visual.attn_pool is not None or visual.pool_type != "tok":
            pool = "an attention pool" if visual.attn_pool is not None else f"the pool {visual.pool_type!r} next to a class token"
            raise UserError(f"{what}: its image half has {pool}; ours are the class token, the mean without one, and a MAP head")
        settings = _block_settings(visual.transformer, visual.ln_post, what)
        state = read_layout(source, OPEN_CLIP_IMAGE)
        set_grid(state, what)
        head = {"weight": source.take("proj").T.contiguous()}
    else:
        raise UserError(f"{what}: its image half is a {type(kind).__name__}; only Vision Transformers can be imported")
    source.finish()
    return image_half(state, head, settings.heads, None, settings._asdict())


def _block_settings(transformer: Transformer, norm: nn.LayerNorm, what: str) -> timm.BlockSettings:
    """Return the settings of open_clip's transformer, whose last norm is `norm`."""
    from open_clip.transformer import ResidualAttentionBlock

    block = transformer.resblocks[0]
    if type(block) is not ResidualAttentionBlock:
        raise UserError(f"{what}: blocks of {type(block).__name__}, which our towers do not have")
    return timm.BlockSettings(block.attn.num_heads, timm.activation_of(block.mlp.gelu, what), norm.eps)


def _text_half(text: TextTransformer | HFTextEncoder, tensors: State, what: str) -> Half[TextTowerConfig] | None:
    """Return the text tower, or None if ours cannot express it."""
    from open_clip.transformer import ResidualAttentionBlock, TextTransformer

    ours = (
        isinstance(text, TextTransformer)
        and text.cls_emb is None
        and not text.use_pad_mask
        and text.pool_type in ("argmax", "eos", "last")
        and not (text.attn_mask is not None and text.pool_type == "last")
        and type(text.transformer.resblocks[0]) is ResidualAttentionBlock
    )
    if not ours:
        return None
    source = Source(tensors, what)
    state, head = read_layout(source, OPEN_CLIP_TEXT), source.take_head("text_projection")
    if text.text_projection is not None and not head:  # a matrix, not a layer
        head = {"weight": source.take("text_projection").T.contiguous()}
    source.finish()
    settings = _block_settings(text.transformer, text.ln_final, what)
    how = {
        "causal": text.attn_mask is not None,
        "pad_mask": False,
        "pool": "last" if text.pool_type == "last" else "eos",
        "eos_id": text.eos_id if text.pool_type == "eos" else None,  # otherwise the tokenizer's EOS, the largest id
    }
    return text_half(state, head, settings.heads, how | settings._asdict())


def _tokenizer(name: str, described: ModelConfig, text: Path | None) -> TokenizerConfig:
    """Return the tokenizer of a model: a given sentencepiece model, the one that open_clip names, or CLIP's."""
    settings = described["text_cfg"]
    context, vocabulary = whole_number(settings, "context_length", CONTEXT), whole_number(settings, "vocab_size", VOCABULARY)
    if text is not None:
        return sentencepiece_config(text, context, vocabulary)
    own = settings.get("hf_tokenizer_name") or settings.get("tokenizer_kwargs") or ":" in name
    if own or vocabulary != VOCABULARY:
        return TokenizerConfig(kind="open_clip", path=name, context_length=context)
    return TokenizerConfig(kind="clip", context_length=context)


def _preprocess(cfg: Mapping[str, object], what: str) -> PreprocessConfig:
    """Return how the model's images are prepared. Raises UserError for what our transform cannot do."""
    resize, interpolation = cfg.get("resize_mode") or "shortest", cfg.get("interpolation") or "bicubic"
    return preprocess_config(what, cfg["mean"], cfg["std"], resize, interpolation)


def _published_preprocess(name: str) -> dict[str, object]:
    """Return the image preparation on which all published weights of a model agree.

    A weight file does not say how it wants images.
    """
    import open_clip

    known = [open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)]
    agreed = {}
    for key in ("mean", "std", "interpolation", "resize_mode"):
        values = [cfg.get(key) for cfg in known]
        if values and values[0] is not None and all(value == values[0] for value in values):
            agreed[key] = values[0]
    return agreed


def _license(name: str, weights: str | None) -> str | None:
    """Return the licence of the weights, if it is known."""
    if name.startswith("local-dir:"):
        return read_license(Path(name.removeprefix("local-dir:")))
    return _OPENAI_LICENSE if weights == "openai" else None
