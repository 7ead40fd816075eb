"""Where each library keeps the parameters of a tower: one table for each, which its reader and its writer share.

A table is a `Layout`: rows with one of our layers and the names and the form in which the library stores it.
`read_layout` takes the stored tensors out of a Source and returns them by our names, and `write_layout` does the
opposite. The patch positions are rows on both sides: `set_grid` and `set_rows` convert them from and to the position grid
of a FlexiViT.

Shapes: D width, H heads, K = D / H, N positions, gh x gw position grid, [p, q] kernel.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flexiclip.errors import UserError
from flexiclip.formats.imported import Source, State


@dataclass(frozen=True)
class Form:
    """How a library stores a tensor. `read` makes it ours; `write`, which also gets the number of heads, does the opposite."""

    read: Callable[[Tensor], Tensor]
    write: Callable[[Tensor, int], Tensor]


SAME = Form(lambda x: x, lambda x, heads: x)
TRANSPOSED = Form(lambda x: x.T.contiguous(), lambda x, heads: x.T)
BATCHED = Form(lambda x: x[None], lambda x, heads: x[0])  # [N, D], ours is [1, N, D]
PIXELS_FIRST = Form(lambda x: x.permute(3, 2, 0, 1), lambda x, heads: x.permute(2, 3, 1, 0))  # [p, q, 3, D], ours is [D, 3, p, q]
INTO_HEADS = Form(lambda x: x.flatten(1).T.contiguous(), lambda x, heads: x.T.unflatten(1, (heads, -1)))  # [D, H, K]
BIAS_OF_HEADS = Form(lambda x: x.flatten(), lambda x, heads: x.unflatten(0, (heads, -1)))  # [H, K]
FROM_HEADS = Form(lambda x: x.flatten(0, 1).T.contiguous(), lambda x, heads: x.T.unflatten(0, (heads, -1)))  # [H, K, D]

SCALAR = Form(lambda x: x.reshape(1), lambda x, heads: x)

Tensors = Mapping[str, tuple[str, Form]]
"""The tensors of a layer: the ending of our name -> the ending of their name, and the form."""

LAYER: Tensors = {".weight": (".weight", SAME), ".bias": (".bias", SAME)}
FUSED: Tensors = {".weight": ("_weight", SAME), ".bias": ("_bias", SAME)}  # in torch's MultiheadAttention


@dataclass(frozen=True)
class Stored:
    """A row of a table: one of our layers or tensors. Names with {} stand for one layer in each block.

    The queries, keys and values of an attention, 3 D rows in this order, may be one layer, two layers (q and kv) or three
    layers on either side. An optional layer is one that not every tower has.
    """

    ours: Sequence[str]
    theirs: Sequence[str]
    tensors: Tensors
    optional: bool = False

    def read(self, source: Source, number: int) -> State:
        """Take the tensors of one block out of `source`, and return them by our names."""
        state: State = {}
        for end, (their_end, form) in self.tensors.items():
            parts = [form.read(source.take(name.format(number) + their_end)) for name in self.theirs]
            rows = torch.cat(parts) if len(parts) > 1 else parts[0]
            pieces = rows.tensor_split([len(rows) // 3]) if len(self.ours) > 1 else [rows]
            state |= {name.format(number) + end: piece.contiguous() for name, piece in zip(self.ours, pieces, strict=True)}
        return state

    def write(self, state: State, number: int, heads: int) -> State:
        """Take the tensors of one block out of `state`, and return them as the library stores them."""
        pieces = {}
        for end in self.tensors:
            parts = [state.pop(name.format(number) + end) for name in self.ours]
            pieces[end] = (torch.cat(parts) if len(parts) > 1 else parts[0]).chunk(len(self.theirs))
        return {
            name.format(number) + their_end: form.write(pieces[end][i], heads)
            for i, name in enumerate(self.theirs)
            for end, (their_end, form) in self.tensors.items()
        }


Layout = Sequence[Stored]


def layers(names: Mapping[str, str], tensors: Tensors = LAYER, optional: bool = False) -> list[Stored]:
    """Return the rows of layers with a weight and a bias. `names` maps our names to theirs."""
    return [Stored([ours], [theirs], tensors, optional) for ours, theirs in names.items()]


def single(names: Mapping[str, str], form: Form = SAME, optional: bool = False) -> list[Stored]:
    """Return the rows of single tensors. `names` maps our names to theirs."""
    return layers(names, {"": ("", form)}, optional)


def below(ours: str, theirs: str, *groups: Layout) -> list[Stored]:
    """Return the rows of all groups with prefixes before our names and theirs."""
    rows = [row for group in groups for row in group]
    return [replace(row, ours=[ours + n for n in row.ours], theirs=[theirs + n for n in row.theirs]) for row in rows]


def read_layout(source: Source, layout: Layout) -> State:
    """Take a tower's tensors out of `source`, and return them by our names. Raises UserError if one is missing."""
    state: State = {}
    for row, number in _present(layout, lambda row: row.theirs[0] + next(iter(row.tensors.values()))[0], source):
        state |= row.read(source, number)
    _fold_scales(state)
    return state


def write_layout(state: State, layout: Layout, heads: int = 1) -> State:
    """Return a tower's state by a library's names, in the order of the table.

    Every tensor must have a place in it, except those of early exits, which no other library has.
    """
    left = {name: tensor.detach() for name, tensor in state.items() if not name.startswith("exit_")}
    found: State = {}
    for row, number in _present(layout, lambda row: row.ours[0] + next(iter(row.tensors)), left):
        found |= row.write(left, number, heads)
    assert not left, f"tensors without a place in the layout: {', '.join(left)}"
    return found


def _present(layout: Layout, first: Callable[[Stored], str], tensors: Container[str]) -> Iterator[tuple[Stored, int]]:
    """Yield the rows that `tensors` has, with the numbers of their blocks; `first` gives the name of a row's first tensor.

    There are as many blocks as first rows of a block. A row that is not optional is yielded even if it is missing.
    """
    for numbered, group in itertools.groupby(layout, lambda row: "{}" in row.ours[0]):
        rows = list(group)
        for number in itertools.count() if numbered else range(1):
            if numbered and first(rows[0]).format(number) not in tensors:
                break
            yield from ((row, number) for row in rows if not row.optional or first(row).format(number) in tensors)


def _fold_scales(state: State) -> None:
    """Multiply layers by the factors [D] that follow them (layer scale), and remove these factors (LAYER.scale)."""
    for name in [name for name in state if name.endswith(".scale")]:
        scaled, gamma = name.removesuffix(".scale"), state.pop(name)
        state[f"{scaled}.weight"] = gamma[:, None] * state[f"{scaled}.weight"]
        state[f"{scaled}.bias"] = gamma * state[f"{scaled}.bias"]


def set_grid(state: State, what: str) -> None:
    """Turn the rows `posemb` [N, D] or [1, N, D] of a state into our grid [1, D, gh, gw], row by row.

    A first row that belongs to the class token is added to `cls`. Raises UserError, which starts with `what`, if the
    other rows are not a square grid.
    """
    rows = state["posemb"].flatten(0, -2)
    if "cls" in state:
        if not is_square(len(rows)):
            state["cls"], rows = state["cls"].flatten() + rows[0], rows[1:]
        state["cls"] = state["cls"].view(1, 1, -1)
    if not is_square(len(rows)):
        raise UserError(f"{what}: {len(rows)} positions, not a square grid")
    side = round(len(rows) ** 0.5)
    state["posemb"] = rows.T.reshape(1, -1, side, side).contiguous()


def set_rows(state: State, bias_apart: bool, class_row: bool) -> None:
    """Turn the grid `posemb` of a state into rows [N, D], which is the opposite of `set_grid`.

    Without `bias_apart`, the library's patch embedding has no bias, and the rows take over ours. With `class_row`, a first
    row of zeros is that of the class token, which becomes [D].
    """
    rows = state["posemb"][0].flatten(1).T
    bias = state.pop("bias", torch.zeros(rows.shape[1]))
    if bias_apart:
        state["bias"] = bias
    else:
        rows = rows + bias
    if class_row:
        rows, state["cls"] = torch.cat([torch.zeros(1, rows.shape[1]), rows]), state["cls"].flatten()
    state["posemb"] = rows


def is_square(number: int) -> bool:
    """Return whether a number is a square number."""
    return round(number**0.5) ** 2 == number


_MLP = {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}

_TIMM_BLOCK = {"norm1": "norm1", "attn.proj": "attn.proj", "norm2": "norm2", **_MLP}
_TIMM_HEAD = {"q": "q", "kv": "kv", "proj": "proj", "norm": "norm", **_MLP}
TIMM: Layout = [
    *single({"kernel": "patch_embed.proj.weight", "posemb": "pos_embed"}),
    *single({"bias": "patch_embed.proj.bias", "cls": "cls_token"}, optional=True),
    *layers({"norm_pre": "norm_pre"}, optional=True),
    *below(
        "blocks.{}.",
        "blocks.{}.",
        layers(_TIMM_BLOCK),
        single({"attn.qkv.weight": "attn.qkv.weight"}),
        single({"attn.qkv.bias": "attn.qkv.bias", "attn.proj.scale": "ls1.gamma", "mlp.fc2.scale": "ls2.gamma"}, optional=True),
    ),
    *layers({"norm": "norm"}),
    *below("map_head.", "attn_pool.", single({"probe": "latent"}, optional=True), layers(_TIMM_HEAD, optional=True)),
]

_OPEN_CLIP_BLOCKS = below(
    "blocks.{}.",
    "transformer.resblocks.{}.",
    layers({"norm1": "ln_1", "attn.proj": "attn.out_proj", "norm2": "ln_2"}),
    layers({"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}),
    layers({"attn.qkv": "attn.in_proj"}, FUSED),
    single({"attn.proj.scale": "ls_1.gamma", "mlp.fc2.scale": "ls_2.gamma"}, optional=True),
)
OPEN_CLIP_IMAGE: Layout = [
    *single({"kernel": "conv1.weight", "cls": "class_embedding", "posemb": "positional_embedding"}),
    *layers({"norm_pre": "ln_pre"}, optional=True),
    *_OPEN_CLIP_BLOCKS,
    *layers({"norm": "ln_post"}),
]
OPEN_CLIP_TEXT: Layout = [
    *single({"token_embedding.weight": "token_embedding.weight"}),
    *single({"posemb": "positional_embedding"}, BATCHED),
    *_OPEN_CLIP_BLOCKS,
    *layers({"norm": "ln_final"}),
]

_TRANSFORMERS_BLOCK = {"norm1": "layer_norm1", "attn.proj": "self_attn.out_proj", "norm2": "layer_norm2", **_MLP}
_TRANSFORMERS_BLOCKS = below(
    "blocks.{}.",
    "encoder.layers.{}.",
    layers(_TRANSFORMERS_BLOCK),
    [Stored(["attn.qkv"], [f"self_attn.{part}_proj" for part in "qkv"], LAYER)],
)
_TRANSFORMERS_STEM = {"kernel": "embeddings.patch_embedding.weight", "posemb": "embeddings.position_embedding.weight"}
CLIP_IMAGE: Layout = below(
    "",
    "vision_model.",
    single({**_TRANSFORMERS_STEM, "cls": "embeddings.class_embedding"}),
    layers({"norm_pre": "pre_layrnorm"}),
    _TRANSFORMERS_BLOCKS,
    layers({"norm": "post_layernorm"}),
)
SIGLIP_IMAGE: Layout = below(
    "",
    "vision_model.",
    single({**_TRANSFORMERS_STEM, "bias": "embeddings.patch_embedding.bias", "map_head.probe": "head.probe"}),
    _TRANSFORMERS_BLOCKS,
    layers({"norm": "post_layernorm"}),
    [Stored(["map_head.q", "map_head.kv"], ["head.attention.in_proj"], FUSED)],
    below("map_head.", "head.", layers({"proj": "attention.out_proj", "norm": "layernorm", **_MLP})),
)
TRANSFORMERS_TEXT: Layout = below(
    "",
    "text_model.",
    single({"token_embedding.weight": "embeddings.token_embedding.weight"}),
    single({"posemb": "embeddings.position_embedding.weight"}, BATCHED),
    _TRANSFORMERS_BLOCKS,
    layers({"norm": "final_layer_norm"}),
)

_SCALE: Tensors = {".weight": ("/scale", SAME), ".bias": ("/bias", SAME)}
_DENSE: Tensors = {".weight": ("/kernel", TRANSPOSED), ".bias": ("/bias", SAME)}


def _attention(qkv: Sequence[str], proj: str, optional: bool = False) -> list[Stored]:
    """Return the rows of an attention of flax, whose kernels are by heads."""
    theirs = [f"MultiHeadDotProductAttention_0/{part}" for part in ("query", "key", "value", "out")]
    return [
        Stored(qkv, theirs[:3], {".weight": ("/kernel", INTO_HEADS), ".bias": ("/bias", BIAS_OF_HEADS)}, optional),
        Stored([proj], theirs[3:], {".weight": ("/kernel", FROM_HEADS), ".bias": ("/bias", SAME)}, optional),
    ]


def _big_vision(encoder: str) -> Layout:
    """Return the rows of the last norm, the blocks and the MAP head of a tower of big_vision."""
    mlp = {"mlp.fc1": "MlpBlock_0/Dense_0", "mlp.fc2": "MlpBlock_0/Dense_1"}
    norms = layers({"norm1": "LayerNorm_0", "norm2": "LayerNorm_1"}, _SCALE)
    head = [
        *single({"probe": "probe"}, optional=True),
        *_attention(["q", "kv"], "proj", optional=True),
        *layers({"norm": "LayerNorm_0"}, _SCALE, optional=True),
        *layers(mlp, _DENSE, optional=True),
    ]
    return [
        *layers({"norm": f"{encoder}/encoder_norm"}, _SCALE),
        *below("blocks.{}.", f"{encoder}/encoderblock_{{}}/", norms, layers(mlp, _DENSE), _attention(["attn.qkv"], "attn.proj")),
        *below("map_head.", "MAPHead_0/", head),
    ]


BIG_VISION_IMAGE: Layout = [
    *single({"kernel": "embedding/kernel"}, PIXELS_FIRST),
    *single({"bias": "embedding/bias", "posemb": "pos_embedding"}),
    *single({"cls": "cls"}, optional=True),
    *_big_vision("Transformer"),
]
BIG_VISION_TEXT: Layout = [
    *single({"token_embedding.weight": "Embed_0/embedding", "posemb": "pos_embedding"}),
    *_big_vision("Encoder_0"),
]
BIG_VISION_HEAD: Layout = [
    *single({"weight": "head/kernel"}, TRANSPOSED, optional=True),
    *single({"bias": "head/bias"}, optional=True),
]
BIG_VISION_SCALARS: Layout = [*single({"logit_scale": "t"}, SCALAR), *single({"logit_bias": "b"}, SCALAR, optional=True)]
SCALARS: Layout = single({"logit_scale": "logit_scale", "logit_bias": "logit_bias"}, SCALAR, optional=True)
"""The parameters of the loss, in open_clip and transformers."""
