"""The interface of a model in the harness (EvalModel, ForeignModel), and functions for its lengths, names, sizes and cost.

flexiclip.LoadedModel has this interface. Any object with the same four attributes has it too, such as a wrapper around a model of
another library. A wrapper that also knows its lengths and costs is a ForeignModel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from flexiclip.model_source import OPEN_CLIP, split_open_clip
from flexiclip.models.flops import image_gflops
from flexiclip.models.variants import tower_name

Length = int | None
"""A seqhw; None for a model that has only one length and does not state it."""

Width = int | None
"""How many columns of the embeddings are compared, starting with the first; None: all."""


class EvalModel(Protocol):
    """A model that can be scored. Its attributes are only read.

    `config` is None for a model of another library, which is then scored at its one length.
    """

    @property
    def model(self) -> Any:
        """A torch module: encode_image(images [B, 3, H, W], seqhw=None) -> [B, D] and encode_text(tokens [B, L]) -> [B, D]."""

    @property
    def transform(self) -> Callable[[Image], Tensor]:
        """PIL image -> float32 [3, H, W]. If it has a method `pixels` (-> uint8) and config is set, images are kept as uint8."""

    @property
    def tokenizer(self) -> Callable[[list[str]], Tensor]:
        """Texts -> int64 [N, L]."""

    @property
    def config(self) -> Config | None:
        """The resolved recipe, or None."""


@dataclass(frozen=True)
class Geometry:
    """The sizes and the cost of a model at one length. A field is None if it is unknown, or does not apply to the model."""

    image_size: Side | None = None  # pixels
    patch_size: Side | None = None  # pixels
    gflops: float | None = None  # of the image tower for one image; a multiply-add counts 2


@dataclass
class ForeignModel:
    """An EvalModel with known lengths and costs: one of another library, exported files, or one whose patches are flexed.

    A model of flexiclip that was trained at a single length becomes one too, so that it is scored at that length.
    """

    model: Any
    transform: Callable[[Image], Tensor]
    tokenizer: Callable[[list[str]], Tensor]
    lengths: dict[Length, Geometry]  # all lengths at which it can run
    default: tuple[Length, ...]  # the lengths at which it is scored if none are asked for
    config: Config | None = None  # only for a model in the towers of flexiclip
    name: str | None = None  # of its architecture, if it states one
    trained: tuple[int, ...] | None = None  # the lengths that it was made for, if these are not the default ones


def has_text(loaded: EvalModel) -> bool:
    """Return whether the model has a text tower; False for an image tower alone."""
    return not isinstance(loaded.tokenizer, AbsentTokenizer)


def head_classes(loaded: EvalModel) -> tuple[str, ...] | None:
    """Return the classes of a classifier, whose encode_image returns their logits in this order; None for every other model."""
    classes = loaded.config.model.classes if loaded.config is not None else None
    return classes if isinstance(classes, tuple) else None


def is_fixed(loaded: EvalModel) -> bool:
    """Return whether the model has only one length."""
    return len(loaded.lengths) == 1 if isinstance(loaded, ForeignModel) else loaded.config is None


def choose_lengths(loaded: EvalModel, seqhw: Sequence[int] | None) -> list[Length]:
    """Return the lengths to evaluate: those in `seqhw`, else all that the model was made for.

    Raises UserError, which lists the valid lengths, if the model does not run at a length.
    """
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


def lengths_among(loaded: EvalModel, source: str, seqhw: Sequence[int] | None, several: bool) -> list[Length]:
    """Return the lengths to evaluate, as choose_lengths does; the error names `source`.

    several: whether other models are evaluated too. A model with a single length then keeps that length.
    """
    with naming(source):
        return choose_lengths(loaded, None if several and is_fixed(loaded) else seqhw)


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Put the name of a model before the UserErrors of this block."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


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
    """Return the lengths that the model was made for, as far as they are known."""
    if loaded.config is not None:
        return loaded.config.trained_seqhw
    if not isinstance(loaded, ForeignModel):
        return ()
    known = loaded.default if loaded.trained is None else loaded.trained
    return tuple(length for length in known if length is not None)


def model_names(loaded: EvalModel, source: str) -> tuple[str, str]:
    """Return `model` and `pretrained` of the rows.

    These are NAME and PRETRAINED of open_clip:NAME/PRETRAINED, else the name of the architecture and the source.
    """
    if source.startswith(OPEN_CLIP):
        name, pretrained = split_open_clip(source.removeprefix(OPEN_CLIP))
        return name, pretrained or ""
    if loaded.config is not None:
        return tower_name(loaded.config.model.image), source
    own = loaded.name if isinstance(loaded, ForeignModel) else None
    return own or source.rstrip("/").rpartition("/")[2], source


def geometry(loaded: EvalModel, length: Length) -> Geometry:
    """Return the sizes and the cost of a model at one length, as far as they are known."""
    if isinstance(loaded, ForeignModel):
        return loaded.lengths[length]
    if loaded.config is None or length is None:
        return Geometry()
    return geometry_of(loaded.config, length)


def geometry_of(config: Config, length: int) -> Geometry:
    """Return the sizes and the cost of a flexiclip image tower at one length."""
    height, width = pair(config.model.image.image_size)
    return Geometry(side(height, width), side(height // length, width // length), image_gflops(config.model, length))


def side(height: int, width: int) -> Side:
    """Return a size as in the rows: the side of a square, or [height, width]."""
    return height if height == width else [height, width]
