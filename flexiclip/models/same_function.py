"""Checks that the weights of a model folder compute the same function in the model of a recipe.

Shapes do not show every difference. With another activation, epsilon, mask or resize, another vocabulary or another
normalisation of the images, every tensor still fits, but the tower no longer computes what it learned. Therefore
`model.image.init` and `model.text.init` refuse each of these differences.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from flexiclip.config import Config, ImageTowerConfig, TextTowerConfig
from flexiclip.errors import UserError
from flexiclip.files import read_json
from flexiclip.models.text.base import SUBFOLDER, TextTower
from flexiclip.models.variants import shape_of

# Settings that change what a tower computes but not the shapes of its weights.
_RESIZES = ("kernel_resize", "kernel_antialias", "grid_resize", "grid_antialias")
_MEANING = ("kind", "flexible", "activation", "norm_eps", "causal", "pad_mask", "pool", "pad_id", "eos_id", *_RESIZES)

# Settings of another library's tower that do not change what it computes: its origin, how it is stored, how it trains.
_ORIGIN = ("_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype", "use_cache", "id2label", "label2id")
_PLACES = ("hf_model_name", "hf_tokenizer_name", "hf_model_pretrained", "vision_cfg")


def check_settings(ours: ImageTowerConfig | TextTowerConfig, theirs: ImageTowerConfig | TextTowerConfig, where: str) -> None:
    """Raise UserError that names the settings in which two towers of equal shapes compute different functions."""
    names = [name for name in _MEANING if getattr(ours, name, None) != getattr(theirs, name, None)]
    both = (ours, theirs)
    if all(getattr(section, "kind", "transformer") == "transformer" for section in both):
        names += ["heads"] if len({shape_of(section, where).heads for section in both}) > 1 else []
    if len({getattr(section, "exits", ()) for section in both if getattr(section, "exit_heads", "") == "separate"}) > 1:
        names.append("exits")  # their norms and pools are numbered without the block that they follow
    if names:
        wanted = ", ".join(f"{name}={_said(getattr(theirs, name, None))}" for name in names)
        raise UserError(f"{where}: its tower was trained with {wanted}; set the same in the recipe")


def check_inputs(ours: Config, theirs: Config, half: str, same_words: bool, where: str) -> None:
    """Raise UserError for a tower that would get another normalisation or another vocabulary than it was trained with.

    `half` is "image" or "text". `same_words` says whether the tokenizer is the one of the training.
    """
    mine, its = ours.model.preprocess, theirs.model.preprocess
    if half == "image" and (mine.mean, mine.std) != (its.mean, its.std):
        wanted = f"mean={list(its.mean)}, std={list(its.std)}"
        raise UserError(f"{where}: its tower was trained on images normalised by {wanted}; set the same in model.preprocess")
    if half == "text" and not same_words:
        raise UserError(f"{where}: its tower was trained with another tokenizer; set tokenizer.kind, path and lengths to its own")


def check_architecture(tower: TextTower, folder: Path, where: str) -> None:
    """Raise UserError that names the settings in which another library's tower in a folder computes another function.

    `tower` is the tower of the recipe. Both libraries write their settings as JSON, so the files that the two towers
    write into a model folder are compared. Our own text tower writes no such file, because its settings are in the
    recipe.
    """
    with tempfile.TemporaryDirectory() as written:
        tower.save_config(Path(written))
        ours, theirs = (_settings(Path(root) / SUBFOLDER) for root in (written, folder))
    names = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if names:
        wanted = ", ".join(f"{name}={_said(theirs.get(name))}" for name in names[:4])
        raise UserError(f"{where}: its tower was trained with {wanted}; model.text.name is another architecture")


def _settings(folder: Path) -> dict[str, object]:
    """Return all settings of the JSON files in a folder that change what the tower computes, by dotted name."""
    return {name: value for path in sorted(folder.glob("*.json")) for name, value in _flat(read_json(path), "").items()}


def _flat(section: Mapping[str, object], prefix: str) -> dict[str, object]:
    """Flatten nested settings into dotted names, without those about origin, storage and dropout."""
    found: dict[str, object] = {}
    for name, value in section.items():
        if name not in (*_ORIGIN, *_PLACES) and "dropout" not in name:
            found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _said(value: object) -> str:
    """Write a value as a recipe does: a tuple as a list in brackets, and long texts cut to 60 characters."""
    text = str(list(value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
