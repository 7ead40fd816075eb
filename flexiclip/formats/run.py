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
from flexiclip.config.schema import pair
from flexiclip.config.validate import valid_seqhw
from flexiclip.data.tokenizers import AbsentTokenizer, build_tokenizer
from flexiclip.errors import UserError
from flexiclip.files import writing
from flexiclip.formats.imported import Imported
from flexiclip.model_folder import LoadedModel, model_from_weights, save_model
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
    if format not in _READERS:
        raise UserError(f"--format {format}: choose one of {', '.join(_READERS)}")
    imported = _READERS[format](source, options or ImportOptions())
    loaded = build_imported(imported, source)
    loaded.provenance = {"source": source, "source_format": format}
    loaded.provenance |= {"license": imported.license} if imported.license else {}
    loaded.provenance |= {"import_notes": imported.notes} if imported.notes else {}
    with writing(f"--output {output}"):
        save_model(output, loaded)
    return _account(loaded, imported, output)


def build_imported(imported: Imported, where: str) -> LoadedModel:
    """Build the model that a reader returned, with every parameter from its weights.

    `where` starts the error messages. Raises UserError for a grid that is not square, for weights that do not fit, and
    for a tokenizer that cannot be built.
    """
    image = imported.image
    gh, gw = pair(image.base_grid)
    if gh != gw:
        raise UserError(f"{where}: a grid of {gh}x{gw} cells: only square ones can be imported")
    cells = pair(image.image_size)[0] / pair(image.base_patch_size)[0]
    own = min(valid_seqhw(image.image_size), key=lambda side: abs(side - cells))
    state = dict(imported.state)
    factor = float(state["logit_scale"].exp()) if "logit_scale" in state else 1.0
    bias = float(state["logit_bias"]) if "logit_bias" in state else None
    model = ModelConfig(
        image=image,
        text=imported.text,
        preprocess=imported.preprocess,
        embed_dim=imported.embed_dim,
        logit_scale_init=factor,
        logit_scale_max=max(100.0, factor),
        logit_bias_init=bias,
    )
    check_sizes(model, sum(tensor.nbytes for tensor in state.values()), where)
    config = Config(model=model, tokenizer=imported.tokenizer, patch=PatchConfig(seqhw=imported.seqhw or (own,)))
    if imported.text is None:  # an image tower alone does not use the scale, so 1 will do
        state = {"logit_scale": torch.zeros(1)} | state
        return model_from_weights(config, AbsentTokenizer(config.tokenizer, {}), state, where)
    try:
        tokenizer = build_tokenizer(config.tokenizer)
    except UserError as error:
        raise UserError(f"{error}; --text FILE names the text tower's sentencepiece model in its place") from None
    return model_from_weights(config, tokenizer, state, where)


def _account(loaded: LoadedModel, imported: Imported, output: Path) -> list[str]:
    """What was imported, one line per item."""
    image, text = loaded.config.model.image, loaded.config.model.text
    lines = [
        f"image tower: {image.width} wide, {image.depth} deep, {image.heads} heads, pool {image.pool}, "
        f"kernel {_by(image.base_patch_size)}, grid {_by(image.base_grid)}, images of {_by(image.image_size)} px",
        "text tower: none; encode_text will say so"
        if text is None
        else f"text tower: {text.kind} {text.width or ''} wide, {text.context_length} tokens of {text.vocab_size}",
        f"{len(imported.state)} tensors mapped, none missing, none unused; none resized",
        *imported.notes,
    ]
    default = loaded.model.image_tower.default_seqhw()
    return [*lines, f"wrote {output}: its own length is seqhw={default}, and it runs at every other"]


def _by(size: int | tuple[int, int]) -> str:
    height, width = pair(size)
    return f"{height}x{width}"


def _big_vision(source: str, options: ImportOptions) -> Imported:
    from flexiclip.formats.big_vision_reader import import_big_vision

    _refuse(options, "big_vision", arch=options.arch)
    return import_big_vision(Path(source), options.text, options.heads, options.image_size)


def _timm(source: str, options: ImportOptions) -> Imported:
    from flexiclip.formats.timm_reader import import_timm

    _refuse(options, "timm", text=options.text)
    return import_timm(Path(source), options.arch, options.heads, options.image_size)


def _open_clip(source: str, options: ImportOptions) -> Imported:
    from flexiclip.formats.open_clip_reader import import_open_clip

    _refuse(options, "open_clip", heads=options.heads, image_size=options.image_size)
    return import_open_clip(source, options.arch, options.text)


def _transformers(source: str, options: ImportOptions) -> Imported:
    """Read a folder of transformers, or a SigLIP as big_vision published it."""
    from flexiclip.formats.transformers_reader import import_transformers

    if source.endswith(".npz"):  # a SigLIP as big_vision published it
        return _big_vision(source, options)
    _refuse(options, "transformers", arch=options.arch, heads=options.heads, image_size=options.image_size)
    return import_transformers(Path(source), options.text)


def _refuse(options: ImportOptions, format: str, **given: object) -> None:
    """Raise UserError for an option that would have no effect, because a user would believe that it has one."""
    for name, value in given.items():
        if value is not None:
            raise UserError(f"--{name.replace('_', '-')} has no meaning for this source ({format}): it says that itself")


_READERS: dict[str, Callable[[str, ImportOptions], Imported]] = {
    "big_vision": _big_vision,
    "timm": _timm,
    "open_clip": _open_clip,
    "siglip": _transformers,
    "transformers": _transformers,
}
FORMATS = tuple(_READERS)
