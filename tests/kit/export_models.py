"""Small models of the three architectures that matter outside: this framework's own, CLIP's and SigLIP's.

The fixtures belong to each folder of tests whose conftest.py imports them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flexiclip.config import Config, from_dict
from flexiclip.data.tokenizers import train_sentencepiece
from flexiclip.export.agreement import CAPTIONS
from flexiclip.model_folder import LoadedModel, build_model, load_model, save_model

SMALL = {"width": 32, "depth": 2, "heads": 4}
IMAGE = {**SMALL, "image_size": 48, "base_patch_size": 16, "base_grid": 4, "default_seqhw": 6}
LENGTHS = (2, 3, 4, 6, 8)
MODELS: dict[str, dict[str, Any]] = {
    "ours": {"image": {"pool": "gap"}, "text": {"pool": "eos"}},
    "clip": {
        "image": {"pool": "tok", "pre_norm": True, "patch_bias": False, "norm_eps": 1e-5, "activation": "quick_gelu"},
        "text": {"causal": True, "pad_mask": False, "norm_eps": 1e-5, "activation": "quick_gelu", "mlp_dim": 100},
    },
    "siglip": {
        "image": {"pool": "map", "projection": "none"},
        "text": {"pool": "last", "pad_mask": False, "projection_bias": True},
        "embed_dim": 32,
        "logit_bias_init": -10.0,
    },
}


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = [f"{caption} {i}" for caption in CAPTIONS for i in range(4)]
    return train_sentencepiece(words, tmp_path_factory.mktemp("spm") / "captions.model", 90, lowercase=True)


@pytest.fixture(scope="session")
def make(vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(name, image=..., text=..., tokenizer=..., **model) -> the folder of a model with weights far from any initialisation."""

    def build(name: str, image: Any = (), text: Any = (), tokenizer: Any = (), **model: Any) -> Path:
        known = MODELS[name]
        data = {
            "embed_dim": 24,
            **known,
            "image": {**IMAGE, **known["image"], **dict(image)},
            "text": None if text is None else {**SMALL, **known["text"], **dict(text)},
            **model,
        }
        words = {"path": str(vocabulary), "context_length": 12, "sticky_eos": name == "siglip", **dict(tokenizer)}
        if words.get("kind", "sentencepiece") != "sentencepiece":
            words = dict(tokenizer)
        loaded = build_model(from_dict(Config, {"model": data, "tokenizer": words, "patch": {"seqhw": list(LENGTHS)}}))
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for p in loaded.model.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
        folder = tmp_path_factory.mktemp(name) / "model"
        save_model(folder, loaded, step=7)
        return folder

    return build


@pytest.fixture(scope="session")
def folders(make: Callable[..., Path]) -> dict[str, Path]:
    """The three models, as folders."""
    return {name: make(name) for name in MODELS}


@pytest.fixture(scope="session")
def opened(folders: dict[str, Path]) -> dict[str, LoadedModel]:
    return {name: load_model(folder) for name, folder in folders.items()}
