"""What the harness asks of a model, and what it can say about one: the lengths it takes, its names and its cost.

flexiclip.LoadedModel is such a model; so is anything with these four attributes, such as a wrapper around another library's. One
that knows more of itself than its encoders is a ForeignModel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from flexiclip_eval.rows import Side
from PIL.Image import Image
from torch import Tensor

from flexiclip.config import Config
from flexiclip.config.schema import pair
from flexiclip.config.validate import valid_seqhw
from flexiclip.data.tokenizers import AbsentTokenizer
from flexiclip.errors import UserError
from flexiclip.models.variants import tower_name

OPEN_CLIP = "open_clip:"
"""How a source begins that names a model of open_clip's."""

Length = int | None
"""A seqhw; None: the model's own, for a model that has but one and does not name it."""

Width = int | None
"""Columns of the embeddings that are compared, the first ones; None: all."""


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


@dataclass(frozen=True)
class Geometry:
    """A model at one length; None where its architecture does not say."""

    image_size: Side | None = None  # pixels
    patch_size: Side | None = None  # pixels
    gflops: float | None = None  # image tower, one image, a multiply-add counting 2


@dataclass
class ForeignModel:
    """An EvalModel that is no model folder of ours as it stands: another library's, a file's, or one whose patches are flexed.

    lengths: where it can be run, and what it is there. default: those that it is scored at unless others are asked for. config:
    for a model whose towers are ours. name: of its architecture, for one that says it. trained: the lengths that it was made for,
    where these are not its default ones.
    """

    model: Any
    transform: Callable[[Image], Tensor]
    tokenizer: Callable[[list[str]], Tensor]
    lengths: dict[Length, Geometry]
    default: tuple[Length, ...]
    config: Config | None = None
    name: str | None = None
    trained: tuple[int, ...] | None = None


def has_text(loaded: EvalModel) -> bool:
    """False for an image tower alone."""
    return not isinstance(loaded.tokenizer, AbsentTokenizer)


def head_classes(loaded: EvalModel) -> tuple[str, ...] | None:
    """What the outputs of encode_image stand for, of a classifier; None for every other model."""
    classes = loaded.config.model.classes if loaded.config is not None else None
    return classes if isinstance(classes, tuple) else None


def is_fixed(loaded: EvalModel) -> bool:
    """Whether it has one length and no choice."""
    return len(loaded.lengths) == 1 if isinstance(loaded, ForeignModel) else loaded.config is None


def choose_lengths(loaded: EvalModel, seqhw: Sequence[int] | None) -> list[Length]:
    """The lengths to evaluate: those asked for, else all that the model was made for. UserError names the valid ones."""
    if isinstance(loaded, ForeignModel):
        return _known_lengths(loaded, seqhw)
    if loaded.config is None:
        if seqhw:
            raise UserError(f"--seqhw {_listed(seqhw)}: this model has one fixed length; leave the option out")
        return [None]
    image = loaded.config.model.image
    lengths, valid = sorted(set(seqhw or loaded.config.trained_seqhw)), valid_seqhw(image.image_size, image.widest_stride)
    wrong = sorted(set(lengths) - set(valid))
    if wrong:
        raise UserError(f"seqhw {wrong} does not divide the image of {image.image_size} pixels; valid: {valid}")
    return list(lengths)


def _known_lengths(loaded: ForeignModel, seqhw: Sequence[int] | None) -> list[Length]:
    if not seqhw:
        return list(loaded.default)
    if not set(seqhw) <= loaded.lengths.keys():
        known = [length for length in loaded.lengths if length is not None]
        if is_fixed(loaded):
            own = f", seqhw={known[0]}" if known else ""
            raise UserError(
                f"--seqhw {_listed(seqhw)}: this model has one fixed length{own}; leave the option out, or flex a ViT's patches: "
                "write MODEL+pi or MODEL+bilinear"
            )
        raise UserError(f"--seqhw {_listed(seqhw)}: this model runs at {_listed(known)}")
    return [*sorted(set(seqhw))]


def _listed(lengths: Sequence[int]) -> str:
    return ",".join(map(str, lengths))


def trained_lengths(loaded: EvalModel) -> tuple[int, ...]:
    """The lengths that the model was made for, as far as it names them."""
    if loaded.config is not None:
        return loaded.config.trained_seqhw
    if not isinstance(loaded, ForeignModel):
        return ()
    known = loaded.default if loaded.trained is None else loaded.trained
    return tuple(length for length in known if length is not None)


def model_names(loaded: EvalModel, source: str) -> tuple[str, str]:
    """(model, pretrained) of the rows: the two halves of open_clip:NAME/PRETRAINED, else the tower's shape and the folder."""
    if source.startswith(OPEN_CLIP):
        name, _, pretrained = source.removeprefix(OPEN_CLIP).partition("/")
        return name, pretrained
    if loaded.config is not None:
        return tower_name(loaded.config.model.image), source
    own = loaded.name if isinstance(loaded, ForeignModel) else None
    return own or source.rstrip("/").rpartition("/")[2], source


def geometry(loaded: EvalModel, length: Length) -> Geometry:
    """Sizes and cost at one length."""
    if isinstance(loaded, ForeignModel):
        return loaded.lengths[length]
    if loaded.config is None or length is None:
        return Geometry()
    return geometry_of(loaded.config, length)


def geometry_of(config: Config, length: int) -> Geometry:
    """Of an image tower of ours at one length."""
    from flexiclip.models.flops import image_model_flops

    height, width = pair(config.model.image.image_size)
    flops = image_model_flops(config.model, length)
    return Geometry(side(height, width), side(height // length, width // length), flops / 1e9)


def side(height: int, width: int) -> Side:
    """A size as the rows have it."""
    return height if height == width else [height, width]
