"""Recipes: frozen dataclasses (schema/), how they are read (load.py) and the lengths of time in them (durations.py)."""

from flexiclip.config.durations import Duration, parse_duration, to_steps
from flexiclip.config.load import dump, from_dict, load, to_dict
from flexiclip.config.schema import (
    Config,
    DataConfig,
    EngineConfig,
    EvalConfig,
    ImageTowerConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    PatchConfig,
    PatchStage,
    PreprocessConfig,
    SourceConfig,
    TextTowerConfig,
    TokenizerConfig,
    TrainConfig,
)

__all__ = [
    "Config",
    "DataConfig",
    "Duration",
    "EngineConfig",
    "EvalConfig",
    "ImageTowerConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PatchConfig",
    "PatchStage",
    "PreprocessConfig",
    "SourceConfig",
    "TextTowerConfig",
    "TokenizerConfig",
    "TrainConfig",
    "dump",
    "from_dict",
    "load",
    "parse_duration",
    "to_dict",
    "to_steps",
]
