"""`flexiclip import`: published weights become a model folder, with strict checks and with their source and licence.

    flexiclip import vit_b16.safetensors --format timm --arch vit_base_patch16_224 --output models/vit_b16
    flexiclip import ViT-B-32-quickgelu/openai --format open_clip --output models/clip_b32

A reader (there is one for each format) returns settings and weights by our names, and this module builds the model from
them. A model with a fixed patch size keeps its kernel and its grid as the base kernel and grid. At its own length nothing
is resized, and it also runs at every other length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from flexiclip.config import Config, ModelConfig, PatchConfig
from flexiclip.config.schema import pair, sides
from flexiclip.config.validate import valid_seqhw
from flexiclip.data.tokenizers import AbsentTokenizer, build_tokenizer
from flexiclip.errors import UserError
from flexiclip.files import writing
from flexiclip.formats.big_vision_reader import import_big_vision
from flexiclip.formats.imported import Imported
from flexiclip.formats.open_clip_reader import import_open_clip
from flexiclip.formats.timm_reader import import_timm
from flexiclip.formats.transformers_reader import import_transformers
from flexiclip.model_folder import LoadedModel, model_from_weights, save_model
from flexiclip.model_source import OPEN_CLIP, Accepted, Kind, ModelSource, parse_model
from flexiclip.models.sizes import check_sizes


@dataclass(frozen=True)
class ImportOptions:
    """Facts that a weight file may not contain.

    `arch` is the name of the architecture (for timm, or for open_clip with a weight file). `text` is a sentencepiece
    model, for text towers that come without a tokenizer. `heads` is the number of heads of the image tower; the default
    is that of the published model of this width, or one head per 64 channels. `image_size` is in pixels; the default is
    what the kernel and the grid cover.
    """

    arch: str | None = None
    text: Path | None = None
    heads: int | None = None
    image_size: int | None = None


def import_weights(source: str, format: str, output: Path, options: ImportOptions | None = None) -> list[str]:
    """Write `source` as a model folder, and return what was mapped and what was resized, one line per item.

    Raises UserError if the source cannot be read, if a tensor is missing, left over or of another shape, and if our
    towers cannot express the model.
    """
    if format not in _FORMATS:
        raise UserError(f"--format {format}: choose one of {', '.join(_FORMATS)}")
    named = source
    if format == "open_clip" and not source.startswith(OPEN_CLIP) and not Path(source).exists():
        named = OPEN_CLIP + source
    imported = _read(parse_model(named, Accepted(_FORMATS[format].kinds)), format, options or ImportOptions())
    loaded = build_imported(imported, source)
    loaded.provenance = {"source": source, "source_format": format}
    loaded.provenance |= {"license": imported.license} if imported.license else {}
    loaded.provenance |= {"import_notes": imported.notes} if imported.notes else {}
    with writing(f"--output {output}"):
        save_model(output, loaded)
    return _account(loaded, imported, output)


def read_model(source: ModelSource) -> LoadedModel:
    """Build the model of another library that a source names, without options.

    Raises UserError if it cannot be imported, or if that takes an option of `flexiclip import`.
    """
    format = next(name for name, entry in _FORMATS.items() if entry.kinds[0] is source.kind)
    try:
        return build_imported(_read(source, format, ImportOptions()), source.text)
    except UserError as error:
        if " --" not in str(error):
            raise
        raise UserError(f"{error}; that is an option of `flexiclip import`: give the folder that it writes") from None


def build_imported(imported: Imported, where: str) -> LoadedModel:
    """Build the model that a reader returned, with every parameter from its weights.

    `where` starts the error messages. Raises UserError for a grid that is not square, for weights that do not fit, and
    for a tokenizer that cannot be built.
    """
    image, text = imported.image.config, None if imported.text is None else imported.text.config
    gh, gw = pair(image.base_grid)
    if gh != gw:
        raise UserError(f"{where}: a grid of {gh}x{gw} cells: only square ones can be imported")
    cells = pair(image.image_size)[0] / pair(image.base_patch_size)[0]
    own = min(valid_seqhw(image.image_size), key=lambda side: abs(side - cells))
    state = imported.state
    factor = float(state["logit_scale"].exp()) if "logit_scale" in state else 1.0
    bias = float(state["logit_bias"]) if "logit_bias" in state else None
    model = ModelConfig(
        image=image,
        text=text,
        preprocess=imported.preprocess,
        embed_dim=imported.embed_dim,
        logit_scale_init=factor,
        logit_scale_max=max(100.0, factor),
        logit_bias_init=bias,
    )
    check_sizes(model, sum(tensor.nbytes for tensor in state.values()), where)
    config = Config(model=model, tokenizer=imported.tokenizer, patch=PatchConfig(seqhw=imported.seqhw or (own,)))
    if text is None:  # an image tower alone does not use the scale, so 1 will do
        state = {"logit_scale": torch.zeros(1)} | state
        return model_from_weights(config, AbsentTokenizer(config.tokenizer, {}), state, where)
    try:
        tokenizer = build_tokenizer(config.tokenizer)
    except UserError as error:
        raise UserError(f"{error}; --text FILE names the text tower's sentencepiece model in its place") from None
    return model_from_weights(config, tokenizer, state, where)


def _account(loaded: LoadedModel, imported: Imported, output: Path) -> list[str]:
    """Return what was imported, one line per item."""
    image, text = loaded.config.model.image, loaded.config.model.text
    lines = [
        f"image tower: {image.width} wide, {image.depth} deep, {image.heads} heads, pool {image.pool}, "
        f"kernel {sides(image.base_patch_size)}, grid {sides(image.base_grid)}, images of {sides(image.image_size)} px",
        "text tower: none; encode_text raises an error"
        if text is None
        else f"text tower: {text.kind} {text.width or ''} wide, {text.context_length} tokens of {text.vocab_size}",
        f"{len(imported.state)} tensors mapped, none missing, none unused; none resized",
        *imported.notes,
    ]
    own = loaded.model.image_tower.default_seqhw()
    return [*lines, f"wrote {output}: its own length is seqhw={own}, and it runs at every other"]


@dataclass(frozen=True)
class _Format:
    """A format of `flexiclip import`: the kinds of sources that it reads, its reader, and the reader's options."""

    kinds: tuple[Kind, ...]
    read: Callable[..., Imported]
    options: tuple[str, ...]


_TRANSFORMERS = _Format((Kind.TRANSFORMERS, Kind.BIG_VISION), import_transformers, ("text",))
_FORMATS = {
    "big_vision": _Format((Kind.BIG_VISION, Kind.WEIGHTS), import_big_vision, ("text", "heads", "image_size")),
    "timm": _Format((Kind.TIMM, Kind.WEIGHTS), import_timm, ("arch", "heads", "image_size")),
    "open_clip": _Format((Kind.OPEN_CLIP, Kind.WEIGHTS), import_open_clip, ("arch", "text")),
    "siglip": _TRANSFORMERS,
    "transformers": _TRANSFORMERS,
}


def _read(source: ModelSource, format: str, options: ImportOptions) -> Imported:
    """Read a source. Raises UserError for an option that would have no effect, because a user would believe that it has one."""
    if source.kind is Kind.BIG_VISION:  # a SigLIP as big_vision published it
        format = "big_vision"
    entry, given = _FORMATS[format], {name: value for name, value in vars(options).items() if value is not None}
    for name in given.keys() - set(entry.options):
        raise UserError(f"--{name.replace('_', '-')} has no meaning for this source ({format}), which has this information")
    if source.kind is Kind.OPEN_CLIP:
        return import_open_clip(source.name, source.pretrained, options.text)
    if format == "open_clip":
        if options.arch is None:
            raise UserError(f"{source.text}: a weight file does not say its model: write NAME/{source.text}, or give --arch NAME")
        return import_open_clip(options.arch, str(source.path), options.text)
    return entry.read(source.path, **given)
