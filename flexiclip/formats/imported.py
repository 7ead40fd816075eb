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
from typing import Any, ParamSpec

import torch
from torch import Tensor

from flexiclip.config import ImageTowerConfig, TextTowerConfig
from flexiclip.config.schema import PreprocessConfig, Size, TokenizerConfig
from flexiclip.errors import UserError
from flexiclip.files import short_reason
from flexiclip.models.variants import HEAD_WIDTH

P = ParamSpec("P")
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


@dataclass
class Imported:
    """The settings and the weights of a model, the latter by FlexiCLIP's names, and how they were obtained.

    `text` is None for an image tower alone. `notes` are sentences for the user about what was resized, folded or assumed.
    """

    image: ImageTowerConfig
    embed_dim: int
    state: State
    text: TextTowerConfig | None = None
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    seqhw: tuple[int, ...] = ()
    license: str | None = None
    notes: list[str] = field(default_factory=list)


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

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str) -> Tensor:
        """Return the tensor of that name on the CPU, as float32. Raises UserError if there is none or if it was taken before."""
        if name not in self._left:
            raise UserError(f"{self.what}: the tensor {name!r} is missing; it has {_listed(self._left)}")
        return self._left.pop(name).detach().to("cpu", torch.float32)

    def take_layer(self, theirs: str, ours: str) -> State:
        """Take a linear or norm layer: its weight and, if it has one, its bias."""
        state = {f"{ours}.weight": self.take(f"{theirs}.weight")}
        if f"{theirs}.bias" in self:
            state[f"{ours}.bias"] = self.take(f"{theirs}.bias")
        return state

    def drop(self, *names: str) -> None:
        """Remove tensors that contain no information, such as stored position numbers."""
        for name in names:
            self._left.pop(name, None)

    def finish(self) -> None:
        """Raise UserError that lists the tensors that were not taken, because the file then belongs to another kind of model."""
        if not self._left:
            return
        reasons = {reason for piece, reason in _NOT_OURS.items() if any(piece in name for name in self._left)}
        why = f" ({'; '.join(sorted(reasons))})" if reasons else "; drop them, or is it another model?"
        raise UserError(f"{self.what}: tensors without a place in the tower: {_listed(self._left)}{why}")


def _listed(names: Mapping[str, object]) -> str:
    """The first six names in alphabetical order, and how many more there are."""
    first = sorted(names)[:6]
    return (", ".join(first) or "nothing else") + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def prefixed(state: Mapping[str, Tensor], prefix: str) -> State:
    """The state under the names {prefix}.{name}."""
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}


def square_grid(positions: Tensor, what: str) -> Tensor:
    """Turn position embeddings [N, D] of a square grid, row by row, into our posemb [1, D, gh, gw].

    Raises UserError if N is not a square number.
    """
    cells, width = positions.shape
    side = round(cells**0.5)
    if side * side != cells:
        raise UserError(f"{what}: {cells} positions, not a square grid")
    return positions.T.reshape(1, width, side, side).contiguous()


def fold_class_position(cls: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Add the class token's position to the class token.

    Takes the class token [D] and positions [1 + N, D], of which the first is its own. Returns cls [1, 1, D] with that
    position added, and the other positions [N, D].
    """
    return (cls.flatten() + positions[0]).view(1, 1, -1), positions[1:]


def fold_layer_scale(state: State, layer: str, gamma: Tensor) -> None:
    """Multiply a linear layer, in place, by the factor [D] that follows it."""
    state[f"{layer}.weight"] = gamma[:, None] * state[f"{layer}.weight"]
    state[f"{layer}.bias"] = gamma * state[f"{layer}.bias"]


def default_heads(width: int, heads: int | None = None) -> int:
    """The number of heads: `heads` if given, else that of the published ViT of this width, else one per 64 channels.

    Raises UserError if the width is not a multiple of it.
    """
    found = heads or _HEADS_OF_WIDTH.get(width, max(1, width // HEAD_WIDTH))
    if width % found:
        raise UserError(f"--heads {found}: the width {width} is not a multiple of it")
    return found


def image_config(state: State, heads: int | None, image_size: Size | None = None, **settings: Any) -> ImageTowerConfig:
    """The settings of an image tower with the sizes of its weights.

    `image_size` is in pixels; the default is what the kernel and the grid cover.
    """
    kernel, grid = tuple(state["kernel"].shape[-2:]), tuple(state["posemb"].shape[-2:])
    width = len(state["kernel"])
    pixels = tuple(p * g for p, g in zip(kernel, grid, strict=True))
    pool = "map" if "map_head.probe" in state else "tok" if "cls" in state else "gap"
    return ImageTowerConfig(
        width=width,
        depth=_depth(state),
        heads=default_heads(width, heads),
        mlp_dim=len(state["blocks.0.mlp.fc1.bias"]),
        image_size=image_size or _side(pixels),
        base_patch_size=_side(kernel),
        base_grid=_side(grid),
        pool=pool,  # type: ignore[arg-type]
        pre_norm="norm_pre.weight" in state,
        patch_bias="bias" in state,
        **settings,
    )


def text_config(state: State, heads: int | None, **settings: Any) -> TextTowerConfig:
    """The settings of our own text transformer with the sizes of its weights."""
    vocab_size, width = state["token_embedding.weight"].shape
    return TextTowerConfig(
        width=width,
        depth=_depth(state),
        heads=default_heads(width, heads),
        mlp_dim=len(state["blocks.0.mlp.fc1.bias"]),
        vocab_size=vocab_size,
        context_length=state["posemb"].shape[1],
        **settings,
    )


def sentencepiece_config(path: Path, context: int, vocabulary: int) -> TokenizerConfig:
    """The settings of the tokenizer of a SigLIP text tower, from its sentencepiece model.

    SigLIP 2 pads with <pad>, and older models pad with EOS. Both were trained on lower-cased captions (`lower|tok(...)`
    and `tokenize(...)` in big_vision).
    """
    return TokenizerConfig(path=str(path), context_length=context, sticky_eos=vocabulary != _GEMMA_VOCABULARY)


def projection_settings(head: State) -> dict[str, Any]:
    """The settings `projection` and `projection_bias` for a head with this state; an empty state means no projection."""
    return {"projection": "linear" if head else "none", "projection_bias": "bias" in head}


def joint_dim(image_width: int, image_head: State, text_width: int, text_head: State) -> int:
    """The embed_dim of two towers. Raises UserError if their outputs have different sizes."""
    dims = [len(head["weight"]) if head else width for head, width in ((image_head, image_width), (text_head, text_width))]
    if dims[0] != dims[1]:
        raise UserError(f"the image half gives {dims[0]} numbers, the text half {dims[1]}: not two halves of one model")
    return dims[0]


def _depth(state: State) -> int:
    """The number of blocks in a state. Raises UserError if there are none."""
    blocks = {int(name.split(".")[1]) for name in state if name.startswith("blocks.")}
    if not blocks:
        raise UserError("the file has no transformer blocks where this format keeps them; is it another model?")
    return len(blocks)


def _side(size: tuple[int, ...]) -> Size:
    """One number for a square size, else a pair."""
    return size[0] if size[0] == size[1] else (size[0], size[1])
