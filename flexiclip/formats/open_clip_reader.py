"""Reader of open_clip's ViT models: CLIP's own architecture, and models such as SigLIP whose image half is timm's.

    flexiclip import ViT-B-32-quickgelu/openai --format open_clip --output models/clip_b32
    flexiclip import ViT-B-16-SigLIP/webli.safetensors --format open_clip --text c4_en.model --output models/siglip_b16

Both towers and the tokenizer are imported. open_clip builds the model and loads the weights. The settings are then read
from its modules, so our model computes what open_clip's computes: QuickGELU, the norm before the blocks, and the mask and
the pool of the text tower. A text tower that is not a CLIP transformer (a Hugging Face encoder, CoCa's class token) stays
a module of open_clip, together with its projection.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from flexiclip.config import TextTowerConfig
from flexiclip.config.schema import PreprocessConfig, TokenizerConfig, pair
from flexiclip.errors import UserError
from flexiclip.files import short_reason
from flexiclip.formats import timm_reader as timm
from flexiclip.formats.imported import (
    Imported,
    Source,
    State,
    fold_class_position,
    fold_layer_scale,
    image_config,
    prefixed,
    projection_settings,
    reader,
    sentencepiece_config,
    square_grid,
    text_config,
)
from flexiclip.models.text.open_clip import refuse_foreign_code
from flexiclip.models.text.open_clip_load import with_weights
from flexiclip.tensor_files import beneath, read_json, read_license

_CLIP_CONTEXT, _CLIP_VOCABULARY = 77, 49_408
_OPENAI_LICENSE = "MIT"


@reader
def import_open_clip(source: str, arch: str | None = None, text: Path | None = None) -> Imported:
    """Read a model by its name or from a file.

    `source` is NAME/PRETRAINED (a tag or a file), hf-hub:ORG/REPO, local-dir:FOLDER, or a weight file of the architecture
    `arch`. `text` is a sentencepiece model to use instead of the model's own tokenizer. Raises UserError if the model
    cannot be imported.
    """
    name, weights = _split(source, arch)
    with _quiet():
        model, described, taken = _load(name, weights, source)
    tensors = dict(model.state_dict())
    scalars = Source({key: tensors.pop(key) for key in ("logit_scale", "logit_bias") if key in tensors}, source)
    state = {key: scalars.take(key).reshape(1) for key in ("logit_scale", "logit_bias") if key in scalars}
    visual: Any = model.visual
    image, image_state, notes = _image_half(visual, beneath(tensors, "visual."), source)
    half, text_state = _text_half(model.text, beneath(tensors, "text."), source)
    if half is None:  # open_clip's own module, which includes the projection
        named = name if weights is None else f"{name}/{weights}"
        half = TextTowerConfig(kind="open_clip", name=named, projection="none", context_length=_context(described["text_cfg"]))
    from_file = weights is not None and Path(weights).is_file()
    preprocess = _preprocess(visual, _published_preprocess(name) if from_file else {}, source)
    return Imported(
        image=image,
        text=half,
        tokenizer=_tokenizer(name, described["text_cfg"], text),
        embed_dim=described["embed_dim"],
        state=state | image_state | text_state,
        preprocess=preprocess,
        license=_license(name, weights),
        notes=taken + notes,
    )


def _split(source: str, arch: str | None) -> tuple[str, str | None]:
    """Split a source into the model's name and its weights, which are None if the name includes them."""
    if source.startswith(("hf-hub:", "local-dir:")):
        return source, None
    if arch is not None:
        return arch, source
    name, _, weights = source.partition("/")
    if Path(source).is_file():
        raise UserError(f"{source}: a weight file does not say its model: write NAME/{source}, or give --arch NAME")
    if not weights:
        raise UserError(f"{source}: name the weights too, NAME/PRETRAINED, a tag or a file")
    return name, weights


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress open_clip's warning that a model has random weights, which it logs before weights are loaded from a file."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _load(name: str, weights: str | None, source: str) -> tuple[Any, dict[str, Any], list[str]]:
    """The model of open_clip with its weights, its configuration, and notes."""
    try:
        import open_clip

        refuse_foreign_code()
        if name.startswith("local-dir:"):
            read_json(Path(name.removeprefix("local-dir:")) / "open_clip_config.json")  # explains a broken file
        described = open_clip.get_model_config(name)
        if described is None:
            raise UserError(f"{source}: open_clip knows no model {name!r}; see open_clip.list_models()")
        model, notes = with_weights(name, weights, described, source)
    except UserError:
        raise
    except Exception as error:  # open_clip checks little of what it reads, so errors may be of any type
        raise UserError(f"{source}: open_clip cannot load it: {short_reason(error)}") from None
    return model.eval(), described, notes


def _image_half(visual: Any, tensors: State, what: str) -> tuple[Any, State, list[str]]:
    """The ImageTowerConfig, the weights by our names, and notes."""
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    source = Source(tensors, what)
    if isinstance(visual, TimmModel):
        trunk = Source(beneath(tensors, "trunk."), what)
        settings = timm.settings_of(_plain(visual.trunk, what), what)
        state = timm.tower_state(trunk)
        head = trunk.take_layer("head", "head") if "head.weight" in trunk else {}
        trunk.finish()
        source = Source(beneath(tensors, "head."), what)
        head |= source.take_layer("proj", "head") if "proj.weight" in source else {}
    elif isinstance(visual, VisionTransformer):
        settings = _native_settings(visual, what)
        state = _native_image(source)
        head = {"head.weight": source.take("proj").T.contiguous()}
    else:
        raise UserError(f"{what}: its image half is a {type(visual).__name__}; only Vision Transformers can be imported")
    source.finish()
    head = {name.removeprefix("head."): tensor for name, tensor in head.items()}
    image = image_config(state, settings.pop("heads"), **settings, **projection_settings(head))
    covered, declared = pair(image.image_size), tuple(visual.image_size)
    notes = []
    if covered != declared:
        notes.append(f"images of {covered[0]} px, what the patches cover; open_clip feeds {declared[0]} and drops the rest")
    return image, prefixed(state, "image_tower") | prefixed(head, "image_projection"), notes


def _plain(trunk: nn.Module, what: str) -> Any:
    """The trunk, if it is timm's VisionTransformer. Raises UserError for another class."""
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(trunk, VisionTransformer):
        raise UserError(f"{what}: its image half is a {type(trunk).__name__}; only Vision Transformers can be imported")
    return trunk


def _native_settings(visual: Any, what: str) -> dict[str, Any]:
    """The settings of open_clip's own VisionTransformer that shapes do not show."""
    if visual.attn_pool is not None or visual.pool_type != "tok":
        pool = "an attention pool" if visual.attn_pool is not None else f"the pool {visual.pool_type!r} beside a class token"
        raise UserError(f"{what}: its image half has {pool}; ours are the class token, the mean without one, and a MAP head")
    return _block_settings(visual.transformer, visual.ln_post, what)


def _block_settings(transformer: Any, norm: Any, what: str) -> dict[str, Any]:
    """The settings heads, activation and norm_eps of open_clip's transformer."""
    from open_clip.transformer import ResidualAttentionBlock

    block = transformer.resblocks[0]
    if type(block) is not ResidualAttentionBlock:
        raise UserError(f"{what}: blocks of {type(block).__name__}, which our towers do not have")
    return {
        "heads": block.attn.num_heads,
        "activation": timm.activation_of(block.mlp.gelu, what),
        "norm_eps": norm.eps,
    }


def _native_image(source: Source) -> State:
    """The state of open_clip's own VisionTransformer by our names."""
    cls, positions = fold_class_position(source.take("class_embedding"), source.take("positional_embedding"))
    state = {"kernel": source.take("conv1.weight"), "cls": cls, "posemb": square_grid(positions, source.what)}
    if "ln_pre.weight" in source:
        state |= source.take_layer("ln_pre", "norm_pre")
    return state | _blocks(source) | source.take_layer("ln_post", "norm")


def _blocks(source: Source) -> State:
    """The state of the blocks by our names, with layer scale folded into the layers."""
    state: State = {}
    depth = 0
    while f"transformer.resblocks.{depth}.ln_1.weight" in source:
        theirs, ours = f"transformer.resblocks.{depth}", f"blocks.{depth}"
        for part in ("weight", "bias"):
            state[f"{ours}.attn.qkv.{part}"] = source.take(f"{theirs}.attn.in_proj_{part}")
        for layer, name in (
            ("ln_1", "norm1"),
            ("attn.out_proj", "attn.proj"),
            ("ln_2", "norm2"),
            ("mlp.c_fc", "mlp.fc1"),
            ("mlp.c_proj", "mlp.fc2"),
        ):
            state |= source.take_layer(f"{theirs}.{layer}", f"{ours}.{name}")
        for scale, layer in (("ls_1", "attn.proj"), ("ls_2", "mlp.fc2")):
            if f"{theirs}.{scale}.gamma" in source:
                fold_layer_scale(state, f"{ours}.{layer}", source.take(f"{theirs}.{scale}.gamma"))
        depth += 1
    return state


def _text_half(text: Any, tensors: State, what: str) -> tuple[TextTowerConfig | None, State]:
    """The settings and the weights by our names. The settings are None for a tower that ours cannot express."""
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
        return None, prefixed(tensors, "text_tower.text")
    source = Source(tensors, what)
    state = {
        "token_embedding.weight": source.take("token_embedding.weight"),
        "posemb": source.take("positional_embedding")[None],
    }
    state |= _blocks(source) | source.take_layer("ln_final", "norm")
    head: State = {}
    if isinstance(text.text_projection, nn.Linear):
        head = beneath(source.take_layer("text_projection", "head"), "head.")
    elif text.text_projection is not None:
        head = {"weight": source.take("text_projection").T.contiguous()}
    source.finish()
    settings = _block_settings(text.transformer, text.ln_final, what)
    pool = "last" if text.pool_type == "last" else "eos"
    causal = text.attn_mask is not None
    config = text_config(
        state,
        settings.pop("heads"),
        causal=causal,
        pad_mask=False,
        pool=pool,
        eos_id=text.eos_id if text.pool_type == "eos" else None,  # otherwise the tokenizer's EOS, the largest id
        **settings,
        **projection_settings(head),
    )
    return config, prefixed(state, "text_tower") | prefixed(head, "text_projection")


def _context(text_cfg: dict[str, Any]) -> int:
    return int(text_cfg.get("context_length", _CLIP_CONTEXT))


def _tokenizer(name: str, text_cfg: dict[str, Any], text: Path | None) -> TokenizerConfig:
    """The tokenizer of a model: a given sentencepiece model, the one that open_clip names, or CLIP's."""
    context, vocabulary = _context(text_cfg), text_cfg.get("vocab_size", _CLIP_VOCABULARY)
    if text is not None:
        return sentencepiece_config(text, context, vocabulary)
    own = text_cfg.get("hf_tokenizer_name") or text_cfg.get("tokenizer_kwargs") or ":" in name
    if own or vocabulary != _CLIP_VOCABULARY:
        return TokenizerConfig(kind="open_clip", path=name, context_length=context)
    return TokenizerConfig(kind="clip", context_length=context)


def _preprocess(visual: Any, published: dict[str, Any], what: str) -> PreprocessConfig:
    """How the model's images are prepared. Raises UserError for what our transform cannot do."""
    cfg = visual.preprocess_cfg | published
    resize = cfg.get("resize_mode") or "shortest"
    if resize not in ("shortest", "squash"):
        raise UserError(f"{what}: it resizes images by {resize!r}; ours are shortest and squash")
    interpolation = cfg.get("interpolation") or "bicubic"
    if interpolation not in ("bilinear", "bicubic"):
        raise UserError(f"{what}: it resizes images with the filter {interpolation!r}; ours are bilinear and bicubic")
    return PreprocessConfig(
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        resize="squash" if resize == "squash" else "shortest",
        interpolation="bilinear" if interpolation == "bilinear" else "bicubic",
    )


def _published_preprocess(name: str) -> dict[str, Any]:
    """The image preparation on which all published weights of a model agree. A weight file does not say how it wants images."""
    import open_clip

    known = [open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)]
    agreed = {}
    for key in ("mean", "std", "interpolation", "resize_mode"):
        values = [cfg.get(key) for cfg in known]
        if values and values[0] is not None and all(value == values[0] for value in values):
            agreed[key] = values[0]
    return agreed


def _license(name: str, weights: str | None) -> str | None:
    """The licence of the weights, if it is known."""
    if name.startswith("local-dir:"):
        return read_license(Path(name.removeprefix("local-dir:")))
    return _OPENAI_LICENSE if weights == "openai" else None
