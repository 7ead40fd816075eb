"""Every key of a recipe, with its default, its unit and what it means: model.py, data.py and train.py hold the sections.

Each section checks itself in `__post_init__`; rules that cross sections stand in validate.py. This package imports nothing of
the framework but the error type, so that every floor may import it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from flexiclip.config.schema.checks import Size, pair, require
from flexiclip.config.schema.data import DataConfig, PatchConfig, PatchStage, SourceConfig
from flexiclip.config.schema.model import (
    ImageTowerConfig,
    ModelConfig,
    PreprocessConfig,
    TextTowerConfig,
    TokenizerConfig,
)
from flexiclip.config.schema.train import (
    ClassificationConfig,
    DistillationConfig,
    EngineConfig,
    EvalConfig,
    LossConfig,
    OptimizerConfig,
    TrainConfig,
)

__all__ = [
    "ClassificationConfig",
    "Config",
    "DataConfig",
    "DistillationConfig",
    "EngineConfig",
    "EvalConfig",
    "ImageTowerConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PatchConfig",
    "PatchStage",
    "PreprocessConfig",
    "Size",
    "SourceConfig",
    "TextTowerConfig",
    "TokenizerConfig",
    "TrainConfig",
    "pair",
]


@dataclass(frozen=True)
class Config:
    """A whole recipe."""

    run_dir: str = "runs/default"
    seed: int = 0
    objective: Literal["contrastive", "classification", "distillation"] = "contrastive"
    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    patch: PatchConfig = field(default_factory=PatchConfig)
    loss: LossConfig = field(default_factory=LossConfig)  # of objective=contrastive
    classification: ClassificationConfig = field(default_factory=ClassificationConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**64, f"seed={self.seed} must be 0 or more and below 2^64")

    @property
    def trained_seqhw(self) -> tuple[int, ...]:
        """The lengths that the run trains at, shortest first. Everything that asks which lengths a model knows asks here."""
        return self.patch.drawn_until(self.train.steps)
