"""The settings of the small models that the tests export."""

from __future__ import annotations

from typing import Any

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
