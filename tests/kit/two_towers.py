"""A model of two small towers, or of an image tower alone, and a batch for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flexiclip.config import Config, from_dict
from flexiclip.data.images import EvalTransform
from flexiclip.data.tokenizers import AbsentTokenizer
from flexiclip.model_folder import LoadedModel
from flexiclip.models.clip import FlexiCLIP
from flexiclip.models.text import build_text_tower
from flexiclip.train.objectives import Inputs

ROWS, DIM, CLASSES = 7, 6, 5
SIZES = {"width": 16, "heads": 2}
IMAGE = {**SIZES, "depth": 3, "image_size": 24, "base_patch_size": 8, "base_grid": 3, "projection_bias": True}
TEXT = {**SIZES, "depth": 1, "vocab_size": 30, "pad_id": 0, "eos_id": 1, "context_length": 6}
IDS = torch.tensor([4, 9, 4, 2, 9, 9, 0])  # twins and triplets
NORMALIZED = {"mean": (0.2, 0.4, 0.6), "std": (0.5, 0.25, 0.3)}


def model_of(seed: int = 0, image: dict[str, Any] | None = None, **model: Any) -> LoadedModel:
    """Two towers, or with text=None a classifier, with every parameter off its initial value."""
    data = {"image": {**IMAGE, **(image or {})}, "text": TEXT, "embed_dim": DIM, "preprocess": NORMALIZED, **model}
    config = from_dict(Config, {"model": data, "patch": {"seqhw": [2, 3]}})
    torch.manual_seed(seed)
    made = FlexiCLIP(config.model, build_text_tower(config.model.text))
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.1 * torch.randn_like(p))
    transform = EvalTransform((24, 24), config.model.preprocess)
    return LoadedModel(made.eval(), transform, AbsentTokenizer(config.tokenizer, {}), config)


def inputs() -> Inputs:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (ROWS, 3, 24, 24), dtype=torch.uint8, generator=generator)
    tokens = torch.tensor([[5 + i, 9, 1, 0] for i in range(ROWS)])
    labels = torch.tensor([[i % CLASSES, (2 * i + 1) % CLASSES] for i in range(ROWS)])
    shares = torch.tensor([[0.7, 0.3], [1.0, 1.0], [1.0, 0.0], [0.5, 0.5], [0.9, 0.1], [1.0, 1.0], [1.0, 0.0]])
    return Inputs(images, tokens, IDS, labels, shares, [f"caption {i}" for i in range(ROWS)])


def pixels(images: Tensor, preprocess: dict[str, Any]) -> Tensor:
    """(pixels / 255 - mean) / std, channel by channel."""
    channels = [(images[:, c].double() / 255 - preprocess["mean"][c]) / preprocess["std"][c] for c in range(3)]
    return torch.stack(channels, dim=1).float()
