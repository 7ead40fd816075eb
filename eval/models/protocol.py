"""What the harness asks of a model, and what it can say about one: the lengths it takes, its names and its cost.

flexiclip.LoadedModel is such a model; so is anything with these four attributes, such as a wrapper around another library's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from PIL.Image import Image
from torch import Tensor

from flexiclip.config import Config
from flexiclip.config.schema import pair
from flexiclip.config.validate import valid_seqhw
from flexiclip.errors import UserError

from ..report.table import Side

Length = int | None
"""A seqhw; None: the model's own, for a model that has but one and does not name it."""


class EvalModel(Protocol):
    """Attributes are read, never set. config is None for a foreign model, which is then scored at its one length."""

    @property
    def model(self) -> Any:
        """A torch module: encode_image(images [B, 3, H, W], seqhw=None) -> [B, D], encode_text(tokens [B, L]) -> [B, D]."""

    @property
    def transform(self) -> Callable[[Image], Tensor]:
        """PIL image -> float32 [3, H, W]; with a method `pixels` (-> uint8) beside config, images are kept as uint8."""

    @property
    def tokenizer(self) -> Callable[[list[str]], Tensor]:
        """Texts -> int64 [N, L]."""

    @property
    def config(self) -> Config | None:
        """The resolved recipe."""


def require_text(loaded: EvalModel) -> None:
    """UserError for an image tower alone: every task of a suite compares images with texts."""
    if loaded.config is not None and loaded.config.model.text is None:
        raise UserError("the model is an image tower alone (model.text is null): zero-shot tasks need its text half; train one")


def choose_lengths(loaded: EvalModel, seqhw: Sequence[int] | None) -> list[Length]:
    """The lengths to evaluate: those asked for, else all that the model was trained at. UserError names the valid ones."""
    if loaded.config is None:
        if seqhw:
            raise UserError(f"--seqhw {','.join(map(str, seqhw))}: this model has one fixed length; leave the option out")
        return [None]
    size = loaded.config.model.image.image_size
    lengths = sorted(set(seqhw or loaded.config.patch.seqhw))
    wrong = sorted(set(lengths) - set(valid_seqhw(size)))
    if wrong:
        raise UserError(f"seqhw {wrong} does not divide the image of {size} pixels; valid: {valid_seqhw(size)}")
    return list(lengths)


def model_names(loaded: EvalModel, source: str) -> tuple[str, str]:
    """(model, pretrained) of the rows: the two halves of open_clip:NAME/PRETRAINED, else the tower's shape and the folder."""
    if loaded.config is None:
        name, _, pretrained = source.removeprefix("open_clip:").partition("/")
        return name, pretrained
    image = loaded.config.model.image
    return f"FlexiViT-{image.variant or f'{image.width}x{image.depth}'}", source


def geometry(loaded: EvalModel, length: Length) -> tuple[Side | None, Side | None, float | None]:
    """(image size, patch size, GFLOPs of an image); None where a foreign model does not say."""
    if loaded.config is None or length is None:
        return None, None, None
    from flexiclip.models.flops import image_model_flops

    model = loaded.config.model
    height, width = pair(model.image.image_size)
    flops = image_model_flops(model, length)
    return _side(height, width), _side(height // length, width // length), flops / 1e9


def _side(height: int, width: int) -> Side:
    return height if height == width else [height, width]
