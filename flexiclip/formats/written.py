"""The result of every writer of whole models, and helpers that the writers share.

A writer turns a model into files in an empty folder. If the format cannot express the model, it raises UserError with the
reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from flexiclip.config import ModelConfig, TextTowerConfig
from flexiclip.errors import UserError
from flexiclip.files import save_tensors
from flexiclip.formats.imported import State
from flexiclip.model_folder import LoadedModel
from flexiclip.models.clip import FlexiCLIP
from flexiclip.models.flexivit import FlexiViT
from flexiclip.models.text import TextTransformer
from flexiclip.models.transformer import Block

Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Written:
    """A written model as the other library opens it again, so that it can be compared with ours.

    `usage` says how to load it. The encoders return embeddings, which need not be normalised. An encoder is None if there
    is no such half, or if the writer has compared the tensors itself. `notes` are sentences for the user.
    """

    usage: str  # Markdown
    encode_image: Encode | None
    encode_text: Encode | None
    notes: tuple[str, ...] = ()


def refuse(format: str, reason: str) -> UserError:
    """Return the error that says why a model cannot be written in a format."""
    return UserError(f"--format {format} cannot express this model: {reason}")


def check(format: str, misfits: Mapping[str, bool]) -> None:
    """Raise the error of `refuse` for the first reason that holds."""
    for reason, holds in misfits.items():
        if holds:
            raise refuse(format, reason)


def text_of(config: ModelConfig, format: str) -> TextTowerConfig:
    """Return the settings of the text tower. Raises UserError for an image tower alone."""
    if config.text is None:
        raise refuse(format, "it has no text half; export the image tower with --format timm or big_vision")
    return config.text


def mlp_ratio(width: int, hidden: int) -> float:
    """Return the ratio for which `int(width * ratio)`, which is how the libraries compute the width of an MLP, is `hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def projection_weight(projection: nn.Module, width: int) -> Tensor:
    """Return the matrix [E, width] of a projection, or the identity matrix if there is no projection."""
    return projection.weight.detach() if isinstance(projection, nn.Linear) else torch.eye(width)


def projection_bias(projection: nn.Module, embed_dim: int) -> Tensor:
    """Return the bias [E] of a projection, or zeros if it has none."""
    bias = projection.bias if isinstance(projection, nn.Linear) else None
    return torch.zeros(embed_dim) if bias is None else bias.detach()


def scalars(model: FlexiCLIP) -> State:
    """Return logit_scale (a logarithm) and, if the model has one, logit_bias, both [1]."""
    return {name: parameter.detach() for name, parameter in model.named_parameters(recurse=False)}


def colours(loaded: LoadedModel) -> dict[str, object]:
    """Return the settings of the image preparation that timm and open_clip name alike."""
    preprocess = loaded.transform.preprocess
    return {"mean": list(preprocess.mean), "std": list(preprocess.std), "interpolation": preprocess.interpolation}


def write_json(path: Path, content: object) -> None:
    """Write an indented JSON file that people can read."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write the tensors as float32 safetensors. Tensors that share memory are stored separately."""
    own = {name: t.detach().cpu().float().clone().contiguous() for name, t in state.items()}
    save_tensors(own, path, {"format": "pt"})


def shape_facts(tower: FlexiViT | TextTransformer) -> tuple[int, int, int, int]:
    """Return the width, depth, number of heads and MLP width of one of our towers."""
    block = tower.blocks[0]
    assert isinstance(block, Block)
    return tower.width, len(tower.blocks), block.attn.heads, block.mlp.fc1.out_features
