"""big_vision's `.npz` weights as state dicts of our towers.

JAX stores images NHWC, convolutions HWIO, dense kernels (in, out), attention q/k/v (D, heads, K) and its output (heads, K, D).
Every array must find its place: one left over raises, because it says that the file is not of the model we take it for.

Shapes: D width, K width of a head, gh x gw position grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexiclip.errors import UserError

Arrays = Mapping[str, NDArray[np.generic]]
State = dict[str, Tensor]


def read_npz(path: Path) -> dict[str, NDArray[np.generic]]:
    """The arrays of an `.npz` by name, a leading `params/` stripped. Pickled objects are refused."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name.removeprefix("params/"): file[name] for name in file.files}
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot read it as an .npz of arrays: {error}") from None


def split_head(arrays: Arrays) -> tuple[dict[str, NDArray[np.generic]], State]:
    """(the arrays of the tower, the state dict of the Linear that is its head). The state is empty for a model without a head."""
    tower = {name: array for name, array in arrays.items() if not name.startswith("head/")}
    source = _Source({name: array for name, array in arrays.items() if name.startswith("head/")})
    state = {} if "head/kernel" not in source else {"weight": source.take("head/kernel").T.contiguous()}
    if "head/bias" in source:
        state["bias"] = source.take("head/bias")
    source.finish()
    return tower, state


def image_tower_state(arrays: Arrays) -> State:
    """The state dict of a FlexiViT from the arrays of big_vision's `flexi` or `vit` model without its head (split_head).

    Raises UserError that lists the arrays missing and left over.
    """
    source = _Source(arrays)
    kernel = source.take("embedding/kernel").permute(3, 2, 0, 1)
    state = {"kernel": kernel, "bias": source.take("embedding/bias"), "posemb": _grid(source.take("pos_embedding"))}
    if "cls" in source:
        state["cls"] = source.take("cls")
    state |= _encoder(source, "Transformer")
    if "MAPHead_0/probe" in source:
        state |= _map_head(source, "MAPHead_0")
    source.finish()
    return state


def text_tower_state(arrays: Arrays) -> State:
    """The state dict of a TextTransformer from the arrays of big_vision's `text_transformer` without its head (split_head).

    Raises UserError that lists the arrays missing and left over.
    """
    source = _Source(arrays)
    state = {"token_embedding.weight": source.take("Embed_0/embedding"), "posemb": source.take("pos_embedding")}
    state |= _encoder(source, "Encoder_0")
    if "MAPHead_0/probe" in source:
        state |= _map_head(source, "MAPHead_0")
    source.finish()
    return state


class _Source:
    """Hands out each array once, as a float32 tensor, and knows what is left."""

    def __init__(self, arrays: Arrays) -> None:
        self._left = dict(arrays)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str) -> Tensor:
        if name not in self._left:
            raise UserError(f"not a big_vision tower: the array {name!r} is missing; it has {_listed(self._left)}")
        return torch.from_numpy(np.asarray(self._left.pop(name), dtype=np.float32).copy())

    def finish(self) -> None:
        if self._left:
            raise UserError(f"arrays without a place in the tower: {_listed(self._left)}; drop them, or is it another model?")


def _listed(names: Arrays) -> str:
    first = sorted(names)[:6]
    return ", ".join(first) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _grid(posemb: Tensor) -> Tensor:
    """[1, gh * gw, D] -> [1, D, gh, gw], the grid being square."""
    _, cells, width = posemb.shape
    side = round(cells**0.5)
    if side * side != cells:
        raise UserError(f"pos_embedding has {cells} positions, not a square grid")
    return posemb.transpose(1, 2).reshape(1, width, side, side)


def _encoder(source: _Source, prefix: str) -> State:
    state = _norm(source, f"{prefix}/encoder_norm", "norm")
    depth = 0
    while f"{prefix}/encoderblock_{depth}/LayerNorm_0/scale" in source:
        theirs, ours = f"{prefix}/encoderblock_{depth}", f"blocks.{depth}"
        state |= _norm(source, f"{theirs}/LayerNorm_0", f"{ours}.norm1")
        state |= _norm(source, f"{theirs}/LayerNorm_1", f"{ours}.norm2")
        state |= _mlp(source, f"{theirs}/MlpBlock_0", f"{ours}.mlp")
        attention = f"{theirs}/MultiHeadDotProductAttention_0"
        qkv = [_projection(source, f"{attention}/{part}") for part in ("query", "key", "value")]
        state[f"{ours}.attn.qkv.weight"] = torch.cat([weight for weight, _ in qkv])
        state[f"{ours}.attn.qkv.bias"] = torch.cat([bias for _, bias in qkv])
        state |= _attention_output(source, f"{attention}/out", f"{ours}.attn.proj")
        depth += 1
    return state


def _map_head(source: _Source, prefix: str) -> State:
    attention = f"{prefix}/MultiHeadDotProductAttention_0"
    (key, key_bias), (value, value_bias) = (_projection(source, f"{attention}/{part}") for part in ("key", "value"))
    query, query_bias = _projection(source, f"{attention}/query")
    state = {
        "map_head.probe": source.take(f"{prefix}/probe"),
        "map_head.q.weight": query,
        "map_head.q.bias": query_bias,
        "map_head.kv.weight": torch.cat([key, value]),
        "map_head.kv.bias": torch.cat([key_bias, value_bias]),
    }
    state |= _attention_output(source, f"{attention}/out", "map_head.proj")
    state |= _norm(source, f"{prefix}/LayerNorm_0", "map_head.norm")
    return state | _mlp(source, f"{prefix}/MlpBlock_0", "map_head.mlp")


def _norm(source: _Source, theirs: str, ours: str) -> State:
    return {f"{ours}.weight": source.take(f"{theirs}/scale"), f"{ours}.bias": source.take(f"{theirs}/bias")}


def _mlp(source: _Source, theirs: str, ours: str) -> State:
    return _dense(source, f"{theirs}/Dense_0", f"{ours}.fc1") | _dense(source, f"{theirs}/Dense_1", f"{ours}.fc2")


def _dense(source: _Source, theirs: str, ours: str) -> State:
    return {f"{ours}.weight": source.take(f"{theirs}/kernel").T.contiguous(), f"{ours}.bias": source.take(f"{theirs}/bias")}


def _projection(source: _Source, name: str) -> tuple[Tensor, Tensor]:
    """q, k or v: kernel (D, heads, K) -> weight [heads * K, D], and its bias."""
    return source.take(f"{name}/kernel").flatten(1).T.contiguous(), source.take(f"{name}/bias").flatten()


def _attention_output(source: _Source, theirs: str, ours: str) -> State:
    """kernel (heads, K, D) -> weight [D, heads * K]."""
    kernel = source.take(f"{theirs}/kernel").flatten(0, 1)
    return {f"{ours}.weight": kernel.T.contiguous(), f"{ours}.bias": source.take(f"{theirs}/bias")}
