"""Text towers: tokens [B, L] -> pooled features [B, D], which the two-tower model projects into the joint space.

    tower = build_text_tower(config.model.text)                 # with the weights that the recipe names
    tower = build_text_tower(config.model.text, model_folder)   # the architecture only; its weights stand in model.safetensors
    tokens = trim_padding(tokens, tower.pad_id) if tower.trims else tokens

The kinds: `transformer`, our own (transformer.py); `huggingface` and `open_clip`, those of other libraries, imported only
when a recipe asks for them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flexiclip.config import TextTowerConfig
from flexiclip.models.text.base import AbsentText, TextTower, TextTransformer, trim_padding
from flexiclip.models.text.huggingface import build_huggingface
from flexiclip.models.text.open_clip import build_open_clip

__all__ = ["TextTower", "TextTransformer", "build_text_tower", "trim_padding"]

_KINDS: dict[str, Callable[[TextTowerConfig, Path | None, bool], TextTower]] = {
    "transformer": lambda config, folder, pretrained: TextTransformer(config),
    "huggingface": build_huggingface,
    "open_clip": build_open_clip,
}


def build_text_tower(config: TextTowerConfig | None, folder: Path | None = None, pretrained: bool = True) -> TextTower:
    """The text tower of a recipe, float32, on the CPU.

    folder: a model folder whose `save_config` files give the architecture, so that neither a network nor `config.name` is needed;
    no weights are read. pretrained: without a folder, whether a foreign tower comes with its weights. Raises UserError (see the
    builders). Without a config it is AbsentText.
    """
    if config is None:
        return AbsentText()
    return _KINDS[config.kind](config, folder, pretrained)
