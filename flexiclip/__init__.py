"""flexiclip trains image-text models whose image tower works at every patch size.

This module has the public names. They are imported on first use, so `import flexiclip` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flexiclip.commands import evaluate, export_onnx, load_recipe, train
    from flexiclip.losses import sigmoid_loss, softmax_loss
    from flexiclip.model_folder import LoadedModel, load_model
    from flexiclip.models.pi_resize import pi_resize

__version__ = "0.1.0"
__all__ = [
    "LoadedModel",
    "evaluate",
    "export_onnx",
    "load_model",
    "load_recipe",
    "pi_resize",
    "sigmoid_loss",
    "softmax_loss",
    "train",
]

_HOMES = {
    "LoadedModel": "flexiclip.model_folder",
    "evaluate": "flexiclip.commands",
    "export_onnx": "flexiclip.commands",
    "load_model": "flexiclip.model_folder",
    "load_recipe": "flexiclip.commands",
    "pi_resize": "flexiclip.models.pi_resize",
    "sigmoid_loss": "flexiclip.losses",
    "softmax_loss": "flexiclip.losses",
    "train": "flexiclip.train",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'flexiclip' has no attribute {name!r}")
    home = importlib.import_module(_HOMES[name])
    return home if name == "train" else getattr(home, name)  # the package flexiclip.train can be called


def __dir__() -> list[str]:
    return sorted(__all__)
