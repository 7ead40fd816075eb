"""Text towers, which turn tokens [B, L] into pooled features [B, D]; the two-tower model projects these.

    tower = build_text_tower(config.model.text)                 # with the weights that the recipe names
    tower = build_text_tower(config.model.text, model_folder)   # only the architecture, whose weights are in model.safetensors
    tokenizer = tower.trimming(tokenizer)                       # cuts padding columns, if that does not change the features

There are three kinds: `transformer` is our own (base.py), and `huggingface` and `open_clip` are towers of other
libraries, which are imported only when a recipe asks for them.
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
    """Build the text tower of a recipe, in float32, on the CPU.

    `folder` is a model folder. The files that `save_config` wrote there give the architecture, so neither a network nor
    `config.name` is needed, and no weights are read. Without a folder, `pretrained` decides whether a tower of another
    library comes with its weights. If `config` is None, the result is an AbsentText. Raises UserError if the tower cannot
    be built; the builders say when.
    """
    if config is None:
        return AbsentText()
    return _KINDS[config.kind](config, folder, pretrained)
