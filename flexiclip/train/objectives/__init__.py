"""What a run trains towards: an objective says what the towers compute of a micro-batch, and which loss their outputs have.

The step (train/step.py), the engines, the order of the data, checkpoints and metrics are the same for each of them.
"""

from __future__ import annotations

from pathlib import Path

import torch

from flexiclip.bundle import LoadedModel, fill_classes
from flexiclip.config import Config
from flexiclip.data.captions import iter_captions
from flexiclip.train.engines.towers import TextFeatures
from flexiclip.train.objectives.base import Objective
from flexiclip.train.objectives.classification import Classification
from flexiclip.train.objectives.contrastive import Contrastive
from flexiclip.train.objectives.distillation import ClassifierDistillation, PairDistillation
from flexiclip.train.objectives.teacher import Teacher, follow, open_teacher, teacher_seqhw
from flexiclip.train.processes.ranks import Ranks
from flexiclip.train.text_features import compute_text_features


def resolve(config: Config, device: torch.device) -> tuple[Config, LoadedModel | None]:
    """The recipe with what only its files say: the classes by name, what a student takes from its teacher; and the teacher."""
    config = fill_classes(config)
    if config.objective != "distillation":
        return config, None
    teacher = open_teacher(config, device)
    return follow(config, teacher), teacher


def make_objective(
    loaded: LoadedModel, teacher: LoadedModel | None, config: Config, bf16: bool, folder: Path, ranks: Ranks
) -> Objective:
    """The objective of a recipe for the model on its device. folder: the run's, where features are kept. Collective."""
    model = loaded.model

    def text_features(of: LoadedModel) -> TextFeatures | None:
        """Those of a frozen text tower, of every training caption."""
        return None if config.data.sequential else compute_text_features(of, iter_captions(config.data), folder, ranks, bf16)

    if config.objective == "classification":
        return Classification(model, config.classification, bf16)
    features = text_features(loaded) if config.model.text_frozen else None
    if teacher is None:
        return Contrastive(model, config.loss, bf16, features)
    seqhw = teacher_seqhw(config, teacher)
    if config.model.text is None:
        return ClassifierDistillation(model, Teacher(teacher, seqhw, bf16), config.distillation, bf16)
    return PairDistillation(model, Teacher(teacher, seqhw, bf16, text_features(teacher)), config.distillation, bf16, features)
