"""Every key of a recipe with its type, default and description. The sections are in model.py, data.py and train.py.

Each section checks its own values in `__post_init__`; validate.py holds the rules that involve several sections. This package
imports nothing of the framework except the error type, so that every floor may import it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flexiclip.config.keys import Size, key, pair, require, section, sides
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
    "sides",
]


@dataclass(frozen=True)
class Config:
    """A whole recipe."""

    run_dir: str = key(
        "runs/default",
        "Folder of the run: resolved recipe, metrics, checkpoints and trained model. A folder that was moved resumes under its "
        "new path.",
        resume=True,
    )
    seed: int = key(
        0,
        "Seed of every random choice: initial weights, order of the samples, captions, crops and sequence lengths. "
        "From 0 to 2^64 - 1.",
    )
    init: str | None = key(
        None,
        "Model to start from: a model folder, a run folder, or a model of open_clip, transformers, timm or big_vision. It fills "
        "in model with the preprocessing and the scale of the loss, tokenizer, loss.kind and patch.seqhw. Other keys of the "
        "recipe replace what is filled in. null: nothing is filled in.",
    )
    objective: Literal["contrastive", "classification", "distillation"] = key(
        "contrastive",
        "What is learned: to match images with captions (contrastive), to sort images into classes (classification), or to "
        "imitate a teacher model (distillation).",
    )
    model: ModelConfig = section(ModelConfig, "The image tower, the text tower and the embedding space that they share.")
    tokenizer: TokenizerConfig = section(TokenizerConfig, "How captions become tokens.")
    data: DataConfig = section(DataConfig, "The training shards, and how a sample is read and augmented.")
    patch: PatchConfig = section(
        PatchConfig,
        "The sequence lengths that are trained. Each step draws one grid side (seqhw) from (seed, step), which sets its patch "
        "size.",
    )
    loss: LossConfig = section(LossConfig, "The loss of objective=contrastive.")
    classification: ClassificationConfig = section(
        ClassificationConfig,
        "The loss of objective=classification, which trains an image tower alone and needs model.text=null, model.classes and "
        "data.labels.",
    )
    distillation: DistillationConfig = section(
        DistillationConfig,
        "The teacher and the loss of objective=distillation (arXiv 2106.05237; FlexiViT, section 3.5). The student, `model`, "
        "imitates how the teacher compares the images and captions of a batch, or without a text tower the teacher's logits.",
    )
    optimizer: OptimizerConfig = section(
        OptimizerConfig,
        "AdamW and its learning rate. Norms, biases, scalars, position embeddings and embedding tables have no weight decay.",
    )
    train: TrainConfig = section(TrainConfig, "Length of the run, batch size, precision, logging and checkpoints.")
    engine: EngineConfig = section(
        EngineConfig,
        "What distributes the training over the ranks. Both engines train the same model, on CPU or GPU.",
        resume=True,
    )
    eval: EvalConfig = section(EvalConfig, "Evaluation during the run, shared over the ranks.", resume=True)

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**64, f"seed={self.seed} must be 0 or more and below 2^64")

    @property
    def trained_seqhw(self) -> tuple[int, ...]:
        """The lengths that the run trains at, shortest first. This is the one answer to which lengths a model knows."""
        return self.patch.drawn_until(self.train.steps)
