"""Text towers of other libraries, and their way through a model folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from flexiclip.config import TextTowerConfig
from flexiclip.models.text import TextTower, build_text_tower


def through_a_folder(tower: TextTower, config: TextTowerConfig, folder: Path) -> TextTower:
    """The tower as a model folder gives it back: architecture from the folder, weights by name, and no source to fall back on."""
    tower.save_config(folder)
    loaded = build_text_tower(replace(config, name="a/source/that/is/gone"), folder, pretrained=False)
    loaded.load_state_dict(tower.state_dict())
    assert (loaded.width, loaded.context_length, loaded.trims) == (tower.width, tower.context_length, tower.trims)
    return loaded.eval()


def bert(folder: Path, **changes: Any) -> transformers.BertModel:
    """A tiny BERT of random weights, saved there."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 20}
    model = transformers.BertModel(transformers.BertConfig(**sizes, max_position_embeddings=9, **changes)).eval()
    model.save_pretrained(folder)
    return model
