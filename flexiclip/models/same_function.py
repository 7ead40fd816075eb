"""Whether the weights of a model folder mean the same function in the model of a recipe, where their shapes do not show it.

Another activation, epsilon, mask or resize, another vocabulary or another normalisation of the images: every tensor fits, and the
tower computes something else than it learned. So `model.image.init` and `model.text.init` refuse each of them.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from flexiclip.config import Config, ImageTowerConfig, TextTowerConfig
from flexiclip.errors import UserError
from flexiclip.models.text.base import SUBFOLDER, TextTower
from flexiclip.models.variants import shape_of

# Settings of a tower that its weights' shapes do not show.
_RESIZES = ("kernel_resize", "kernel_antialias", "grid_resize", "grid_antialias")
_MEANING = ("kind", "flexible", "activation", "norm_eps", "causal", "pad_mask", "pool", "pad_id", "eos_id", *_RESIZES)

# Settings of another library's tower that say where it came from, how it is stored and what it does in training alone.
_ORIGIN = ("_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype", "use_cache", "id2label", "label2id")
_PLACES = ("hf_model_name", "hf_tokenizer_name", "hf_model_pretrained", "vision_cfg")


def check_settings(ours: ImageTowerConfig | TextTowerConfig, theirs: ImageTowerConfig | TextTowerConfig, where: str) -> None:
    """Raise UserError that names the settings in which two towers of the same shapes are different functions."""
    names = [name for name in _MEANING if getattr(ours, name, None) != getattr(theirs, name, None)]
    both = (ours, theirs)
    if all(getattr(section, "kind", "transformer") == "transformer" for section in both):
        names += ["heads"] if len({shape_of(section, where).heads for section in both}) > 1 else []
    if len({getattr(section, "exits", ()) for section in both if getattr(section, "exit_heads", "") == "separate"}) > 1:
        names.append("exits")  # their norms and pools are numbered, and do not say after which block they come
    if names:
        wanted = ", ".join(f"{name}={_said(getattr(theirs, name, None))}" for name in names)
        raise UserError(f"{where}: its tower was trained with {wanted}; set the same in the recipe")


def check_inputs(ours: Config, theirs: Config, half: str, same_words: bool, where: str) -> None:
    """Raise UserError for a tower that would be fed by another normalisation or another vocabulary than it learned."""
    mine, its = ours.model.preprocess, theirs.model.preprocess
    if half == "image" and (mine.mean, mine.std) != (its.mean, its.std):
        wanted = f"mean={list(its.mean)}, std={list(its.std)}"
        raise UserError(f"{where}: its tower was trained on images normalised by {wanted}; set the same in model.preprocess")
    if half == "text" and not same_words:
        raise UserError(f"{where}: its tower was trained with another tokenizer; set tokenizer.kind, path and lengths to its own")


def check_architecture(tower: TextTower, folder: Path, where: str) -> None:
    """Raise UserError that names the settings in which another library's tower in a model folder is not the function of `tower`.

    Both libraries write their settings as JSON, so the files that the two towers have in a model folder are compared. Our own
    text tower writes none: its settings are in the recipe.
    """
    with tempfile.TemporaryDirectory() as written:
        tower.save_config(Path(written))
        ours, theirs = (_settings(Path(root) / SUBFOLDER) for root in (written, folder))
    names = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if names:
        wanted = ", ".join(f"{name}={_said(theirs.get(name))}" for name in names[:4])
        raise UserError(f"{where}: its tower was trained with {wanted}; model.text.name is another architecture")


def _settings(folder: Path) -> dict[str, Any]:
    """Every setting of the JSON files in a folder that changes what the tower computes, by its dotted name."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            section = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: not a JSON file: {error}") from None
        found |= _flat(section, "") if isinstance(section, dict) else {path.name: section}
    return found


def _flat(section: dict[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in section.items():
        if name not in (*_ORIGIN, *_PLACES) and "dropout" not in name:
            found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _said(value: object) -> str:
    """A value as a recipe has it: a list with brackets; long ones are cut."""
    text = str(list(value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
