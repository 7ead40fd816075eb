"""The result of every reader of other libraries' weights, and helpers that the readers share.

A reader maps each tensor of its file to one of ours, and `Source` checks that none is left over. The sizes of the towers
come from the mapped weights. The reader adds the settings that shapes do not show: the activation, the epsilon of the
norms and the mask.

Shapes: D width, gh x gw position grid, [p, q] kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

from flexiclip.config import ImageTowerConfig, TextTowerConfig, from_dict
from flexiclip.config.schema import PreprocessConfig, Size, TokenizerConfig
from flexiclip.errors import UserError, listed
from flexiclip.libraries import short_reason
from flexiclip.models.variants import HEAD_WIDTH

P = ParamSpec("P")
C = TypeVar("C", ImageTowerConfig, TextTowerConfig)
State = dict[str, Tensor]

# The number of heads by width, for published ViTs whose heads are not 64 wide: big_vision's mu, So400m, H, g, G-opt, G, e.
_HEADS_OF_WIDTH = {32: 2, 1152: 16, 1280: 16, 1408: 16, 1536: 16, 1664: 16, 1792: 16}

_GEMMA_VOCABULARY = 256_000  # size of the vocabulary of SigLIP 2's tokenizer

# Parts of published ViTs that our tower does not have, by a part of the names of their tensors.
_NOT_OURS = {
    "reg_token": "it has register tokens",
    "dist_token": "it has a distillation token",
    "fc_norm": "its last norm follows the pool, ours precedes it",
    "q_norm": "it normalises queries and keys",
    "attn_pool.": "its attention pool is not a MAP head",
    "pre_logits": "it has a tanh layer between the pool and the head",
    "BertModel": "its text tower is a BERT",
    "cls_emb": "its text tower has a class token",
}


@dataclass(frozen=True)
class Half(Generic[C]):
    """One tower of a model with its projection, by our names. `head` is the projection's state, empty if there is none."""

    config: C
    state: State
    head: State
    outputs: int  # the size of its embeddings

    def named(self, name: str) -> State:
        """Return the state by FlexiCLIP's names. `name` is "image" or "text"."""
        parts = {f"{name}_tower": self.state, f"{name}_projection": self.head}
        return {f"{part}.{key}": tensor for part, state in parts.items() for key, tensor in state.items()}


@dataclass
class Imported:
    """The settings and the weights of a model, and how they were obtained.

    `text` is None for an image tower alone. `scalars` are logit_scale and, if the model has one, logit_bias, both [1].
    `notes` are sentences for the user about what was resized, folded or assumed.
    """

    image: Half[ImageTowerConfig]
    text: Half[TextTowerConfig] | None = None
    scalars: State = field(default_factory=dict)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    seqhw: tuple[int, ...] = ()
    license: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def embed_dim(self) -> int:
        """The size of the embeddings. Raises UserError if those of the two halves differ."""
        dims = self.image.outputs, self.image.outputs if self.text is None else self.text.outputs
        if dims[0] != dims[1]:
            raise UserError(f"the image half gives {dims[0]} numbers, the text half {dims[1]}: not two halves of one model")
        return dims[0]

    @property
    def state(self) -> State:
        """All weights by FlexiCLIP's names."""
        return self.scalars | self.image.named("image") | ({} if self.text is None else self.text.named("text"))


def reader(read: Callable[P, Imported]) -> Callable[P, Imported]:
    """Decorate a reader so that all its errors are UserErrors. The first argument of the reader is what it reads.

    Tensors whose shapes do not fit together fail somewhere in torch's arithmetic, and settings of a wrong type fail
    anywhere. In all these cases the file is wrong, and explicit checks could not cover every way in which it can be
    wrong.
    """

    @functools.wraps(read)
    def checked(*args: P.args, **kwargs: P.kwargs) -> Imported:
        try:
            return read(*args, **kwargs)
        except UserError:
            raise
        except (RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
            what = next(iter((*args, *kwargs.values())))
            raise UserError(
                f"{what}: its tensors or settings are not those of this format ({type(error).__name__}: {short_reason(error)})"
            ) from error

    return checked


class Source:
    """Hands out each tensor once, as float32, and knows which tensors are left. `what` names the file in errors."""

    def __init__(self, tensors: Mapping[str, Tensor], what: str) -> None:
        self._left = dict(tensors)
        self.what = what

    def __contains__(self, name: object) -> bool:
        return name in self._left

    def take(self, name: str) -> Tensor:
        """Return the tensor of that name on the CPU, as float32. Raises UserError if there is none or if it was taken before."""
        if name not in self._left:
            raise UserError(f"{self.what}: the tensor {name!r} is missing; it has {listed(self._left, 6)}")
        return self._left.pop(name).detach().to("cpu", torch.float32)

    def take_head(self, name: str, required: bool = False) -> State:
        """Take a linear layer: its weight and, if it has one, its bias. If it is not required, the result may be empty."""
        if not required and f"{name}.weight" not in self:
            return {}
        weight = {"weight": self.take(f"{name}.weight")}
        return weight | ({"bias": self.take(f"{name}.bias")} if f"{name}.bias" in self else {})

    def finish(self) -> None:
        """Raise UserError that lists the tensors that were not taken, because the file then belongs to another kind of model."""
        if not self._left:
            return
        reasons = {reason for piece, reason in _NOT_OURS.items() if any(piece in name for name in self._left)}
        why = f" ({'; '.join(sorted(reasons))})" if reasons else "; drop them, or is it another model?"
        raise UserError(f"{self.what}: tensors without a place in the tower: {listed(self._left, 6)}{why}")


def default_heads(width: int, heads: int | None = None) -> int:
    """Return the number of heads: `heads` if given, else that of the published ViT of this width, else one per 64 channels.

    Raises UserError if the width is not a multiple of it.
    """
    found = heads or _HEADS_OF_WIDTH.get(width, max(1, width // HEAD_WIDTH))
    if width % found:
        raise UserError(f"--heads {found}: the width {width} is not a multiple of it")
    return found


def image_half(
    state: State, head: State, heads: int | None, image_size: Size | None, settings: Mapping[str, object]
) -> Half[ImageTowerConfig]:
    """Return an image tower with its projection `head`, which is empty if there is none.

    The sizes are those of the weights. `heads` is the number of heads (`default_heads` if None), and `image_size` is in
    pixels (what the kernel and the grid cover if None). `settings` are further settings of ImageTowerConfig.
    """
    kernel, grid = state["kernel"].shape[-2:], state["posemb"].shape[-2:]
    sizes = {
        "image_size": image_size or one_side(kernel[0] * grid[0], kernel[1] * grid[1]),
        "base_patch_size": one_side(*kernel),
        "base_grid": one_side(*grid),
        "pool": "map" if "map_head.probe" in state else "tok" if "cls" in state else "gap",
        "pre_norm": "norm_pre.weight" in state,
        "patch_bias": "bias" in state,
    }
    config = from_dict(ImageTowerConfig, {**settings, **_shape(state, head, len(state["kernel"]), heads), **sizes})
    return Half(config, state, head, len(head["weight"]) if head else len(state["kernel"]))


def text_half(state: State, head: State, heads: int | None, settings: Mapping[str, object]) -> Half[TextTowerConfig]:
    """Return our own text transformer with its projection `head`. The arguments are those of `image_half`."""
    vocabulary, width = state["token_embedding.weight"].shape
    sizes = {"vocab_size": vocabulary, "context_length": state["posemb"].shape[1]}
    config = from_dict(TextTowerConfig, {**settings, **_shape(state, head, width, heads), **sizes})
    return Half(config, state, head, len(head["weight"]) if head else width)


def _shape(state: State, head: State, width: int, heads: int | None) -> dict[str, object]:
    """Return the settings that both towers have in common, from their weights."""
    blocks = {int(name.split(".")[1]) for name in state if name.startswith("blocks.")}
    if not blocks:
        raise UserError("the file has no transformer blocks where this format keeps them; is it another model?")
    return {
        "width": width,
        "depth": len(blocks),
        "heads": default_heads(width, heads),
        "mlp_dim": len(state["blocks.0.mlp.fc1.bias"]),
        "projection": "linear" if head else "none",
        "projection_bias": "bias" in head,
    }


def sentencepiece_config(path: Path, context: int, vocabulary: int) -> TokenizerConfig:
    """Return the settings of the tokenizer of a SigLIP text tower, from its sentencepiece model.

    SigLIP 2 pads with <pad>, and older models pad with EOS. Both were trained on lower-cased captions (`lower|tok(...)`
    and `tokenize(...)` in big_vision).
    """
    return TokenizerConfig(path=str(path), context_length=context, sticky_eos=vocabulary != _GEMMA_VOCABULARY)


def preprocess_config(what: str, mean: object, std: object, resize: object, interpolation: object) -> PreprocessConfig:
    """Return the image preparation with another library's settings.

    Raises UserError, which starts with `what`, for a setting that our transform does not have.
    """
    if resize not in ("shortest", "squash") or interpolation not in ("bilinear", "bicubic"):
        asked = f"it resizes images by {resize!r} with the filter {interpolation!r}"
        raise UserError(f"{what}: {asked}; ours are shortest or squash, and bilinear or bicubic")
    settings = {"mean": mean, "std": std, "resize": resize, "interpolation": interpolation}
    return from_dict(PreprocessConfig, settings, f"{what}: preprocess")


def one_side(height: int, width: int) -> Size:
    """Return one number for a square size, else a pair."""
    return height if height == width else (height, width)
