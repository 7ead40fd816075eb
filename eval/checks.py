"""Judges models by their names and configs, before the first of them is scored, which may take hours.

    flexiclip eval runs/a runs/b open_clip:ViT-B-32/openia --suite S --seqhw 7

What can be known without weights is checked here for every model of a command: that it exists, that open_clip knows its name and
its weights, that it runs at the lengths, that it has the columns of `--widths`, and a text tower if a task needs one. The errors
name the model. What only the weights show is found when the model is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flexiclip_eval.models.flex import at_every_length
from flexiclip_eval.models.onnx import load_onnx
from flexiclip_eval.models.protocol import EvalModel, ForeignModel, Geometry, Length, has_text, head_classes, side
from flexiclip_eval.models.sources import SCORED, refuse_flexed_export
from flexiclip_eval.suites.dataset import DatasetConfig
from flexiclip_eval.tasks import WITH_A_HEAD, WITHOUT_TEXT

from flexiclip.config import Config
from flexiclip.config.validate import valid_seqhw
from flexiclip.data.tokenizers import AbsentTokenizer
from flexiclip.errors import UserError
from flexiclip.model_folder import LoadedModel, read_config
from flexiclip.model_source import Kind, ModelSource, parse_model
from flexiclip.models.exits import check_exit
from flexiclip.models.text.open_clip_load import check_pretrained, model_config, require_pretrained

_NOTHING: Any = None


def outline(text: str) -> EvalModel | None:
    """Return a model as its name and config describe it, without weights; None if these do not say enough.

    The result has lengths, sizes and costs, and must not be run. Raises UserError for what is already wrong.
    """
    source = parse_model(text, SCORED)
    if source.kind is Kind.ONNX:
        refuse_flexed_export(source)
        return load_onnx(text, source.files)
    if source.kind is Kind.OPEN_CLIP:
        return _outline_open_clip(source)
    if source.kind is not Kind.MODEL:
        return None
    config, _ = read_config(source.path)
    if source.exit is not None:
        check_exit(config.model.image, source.exit, text)
    loaded = LoadedModel(_NOTHING, _NOTHING, _tokenizer(config), config)
    return loaded if source.flex is None else at_every_length(loaded, text)


def _tokenizer(config: Config) -> Any:
    """Return what tells has_text whether a model folder has a text tower."""
    return AbsentTokenizer(config.tokenizer, {}) if config.model.text is None else _NOTHING


def _outline_open_clip(source: ModelSource) -> EvalModel | None:
    """Return the lengths of a ViT that open_clip itself defines. Raises UserError if it does not know the weights."""
    if source.flex is not None:
        require_pretrained(source.name, source.pretrained, source.text)
    found = model_config(source.name, source.text)
    check_pretrained(source.name, source.pretrained, source.text)
    vision = found.get("vision_cfg", {})
    size, patch = vision.get("image_size", 224), vision.get("patch_size")
    if not isinstance(vision.get("layers"), int) or not isinstance(patch, int) or not isinstance(size, int):
        return None  # a tower of timm, a ResNet, or sides that differ
    if source.flex is None:
        lengths: dict[Length, Geometry] = {size // patch: Geometry(size, patch)}
        return ForeignModel(_NOTHING, _NOTHING, _NOTHING, lengths, tuple(lengths))
    covered = size // patch * patch
    lengths = {seqhw: Geometry(covered, side(covered // seqhw, covered // seqhw)) for seqhw in valid_seqhw(covered)}
    return ForeignModel(_NOTHING, _NOTHING, _NOTHING, lengths, tuple(lengths))


def check_widths(loaded: EvalModel, source: str, widths: Sequence[int], whole: int | None) -> None:
    """Raise UserError if `--widths` is given for a classifier, or if a width is not one that the embeddings have.

    whole: the columns of the embeddings; None: those that the config says, if the model has one.
    """
    if not widths:
        return
    if head_classes(loaded) is not None:
        raise UserError(f"--widths: {source} is a classifier, whose outputs are its classes; leave the option out")
    if whole is None and loaded.config is not None:
        whole = loaded.config.model.embed_dim
    if whole is not None and not 1 <= min(widths) <= max(widths) <= whole:
        raise UserError(f"--widths {','.join(map(str, widths))}: the embeddings of {source} have {whole} columns")


def require_text(loaded: EvalModel, source: str, datasets: Sequence[DatasetConfig]) -> None:
    """Raise UserError if a task compares images with texts and the model is an image tower alone."""
    possible = WITHOUT_TEXT if head_classes(loaded) is None else WITH_A_HEAD
    kinds = {task.kind for dataset in datasets for task in dataset.tasks if task.kind not in possible}
    if kinds and not has_text(loaded):
        raise UserError(
            f"{source}: the model is an image tower alone (model.text is null): zero-shot tasks need its text half "
            f"({', '.join(sorted(kinds))}); train one"
        )
