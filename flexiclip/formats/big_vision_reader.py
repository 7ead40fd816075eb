"""Reader of big_vision's `.npz` weights: FlexiViT and ViT towers, text towers, and two-tower files (LiT, SigLIP, SigLIP 2).

    flexiclip import flexivit_s_i1k.npz --format big_vision --output models/flexivit_s
    flexiclip import webli_en_b16_224.npz --format big_vision --text c4_en.model --output models/siglip_b16

JAX stores images as NHWC, convolutions as HWIO, dense kernels as (in, out), q, k and v of an attention as (D, heads, K),
and its output as (heads, K, D). Every array must be used: an array that is left over raises UserError, because it means
that the file belongs to another kind of model.

Files are read without pickle. The names of arrays have changed over the years, and old ones are brought up to date as
big_vision's own loaders do it (fix_old_checkpoints in its models/vit.py, load_params in its utils.py, and load in its
models/proj/image_text/text_transformer.py). Old files differ in these points: a prefix in training checkpoints, module
numbers from before Linen, position embeddings inside the encoder or together with the class token's, a MAP head without a
module of its own, and blocks stacked by lax.scan.

Shapes: D width, K width of a head, gh x gw position grid.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexiclip.config.schema import PatchConfig
from flexiclip.errors import UserError
from flexiclip.files import short_reason, text_there
from flexiclip.formats.imported import (
    Imported,
    Source,
    State,
    default_heads,
    image_config,
    joint_dim,
    prefixed,
    projection_settings,
    reader,
    sentencepiece_config,
    square_grid,
    text_config,
)
from flexiclip.tensor_files import beneath
from flexiclip.tensor_files import read_npz as read_arrays

__all__ = ["image_tower_state", "import_big_vision", "read_npz", "split_head", "text_tower_state"]

Array = NDArray[np.generic]
Arrays = Mapping[str, Array]

_MODULE = re.compile(r"([A-Z][A-Za-z]*)_(\d+)$")
_TRAINING_STATE = ("opt/", "extra/", "chrono/", "states/")
_FLEXIVIT = (32, 7, 240)  # base kernel, base grid and image size of the released FlexiViTs


@reader
def import_big_vision(path: Path, text: Path | None = None, heads: int | None = None, image_size: int | None = None) -> Imported:
    """Read an image tower or a two-tower file.

    `text` is the sentencepiece model that the text tower was trained with. `heads` is not needed, because the kernels of
    the attention show the number of heads; a different number raises UserError. `image_size` is in pixels; the default is
    240 for a FlexiViT and otherwise what the kernel and the grid cover. Raises UserError if the file cannot be imported.
    """
    arrays, training = read_parameters(path)
    notes = [f"{training} arrays of the training state were left out"] if training else []
    if "Embed_0/embedding" in arrays or "Encoder_0/encoder_norm/scale" in arrays:
        raise UserError(f"{path}: a text tower alone; give a file with an image tower, or with both (img/, txt/)")
    if not any(name.startswith("img/") for name in arrays):
        return _image_alone(arrays, str(path), heads, image_size, notes)
    return _two_towers(arrays, path, text, heads, image_size, notes)


def _image_alone(arrays: Arrays, what: str, heads: int | None, image_size: int | None, notes: list[str]) -> Imported:
    """Import a file that has only an image tower."""
    state, head, found, more = _image_half(arrays, what, heads)
    kernel, grid = state["kernel"].shape[-1], state["posemb"].shape[-1]
    flexible = (kernel, grid) == _FLEXIVIT[:2] and image_size in (None, _FLEXIVIT[2])
    if flexible and image_size is None:
        image_size = _FLEXIVIT[2]
        more.append("a 32x32 kernel over a 7x7 grid: taken for a FlexiViT of 240 px; --image-size 224 for a plain ViT-B/32")
    image = image_config(state, found, image_size, **projection_settings(head))
    return Imported(
        image=image,
        embed_dim=len(head["weight"]) if head else len(state["kernel"]),
        state=prefixed(state, "image_tower") | prefixed(head, "image_projection"),
        seqhw=PatchConfig().seqhw if flexible else (),
        notes=notes + more,
    )


def _two_towers(
    arrays: Arrays, path: Path, text: Path | None, heads: int | None, image_size: int | None, notes: list[str]
) -> Imported:
    """Import a file with an image tower and a text tower."""
    what = str(path)
    image_state, image_head, image_heads, image_notes = _image_half(beneath(arrays, "img/"), f"{what}: img", heads)
    text_arrays = beneath(arrays, "txt/")
    if not text_arrays:
        raise UserError(f"{what}: it has img/ but no txt/; a two-tower file has both")
    if any(name.startswith("BertModel") for name in text_arrays):
        raise UserError(f"{what}: its text tower is a BERT, which cannot be imported; give a file with a text transformer")
    if text is None:
        raise UserError(f"{what}: the file holds no tokenizer; give its sentencepiece model with --text FILE")
    today, text_notes = text_arrays_today(text_arrays)
    text_heads = _heads(today, "Encoder_0", f"{what}: txt")
    tower, text_head = split_head(today, f"{what}: txt")
    text_state = text_tower_state(tower, f"{what}: txt")
    scalars = Source(_tensors({n: a for n, a in arrays.items() if not n.startswith(("img/", "txt/"))}), what)
    state = {"logit_scale": scalars.take("t").reshape(1)}
    if "b" in scalars:
        state["logit_bias"] = scalars.take("b").reshape(1)
    scalars.finish()
    state |= prefixed(image_state, "image_tower") | prefixed(image_head, "image_projection")
    state |= prefixed(text_state, "text_tower") | prefixed(text_head, "text_projection")
    image = image_config(image_state, image_heads, image_size, **projection_settings(image_head))
    pool = "map" if "map_head.probe" in text_state else "last"
    half = text_config(text_state, text_heads, pad_mask=False, pool=pool, **projection_settings(text_head))
    tokenizer = sentencepiece_config(text, half.context_length or 0, half.vocab_size or 0)
    return Imported(
        image=image,
        text=half,
        tokenizer=tokenizer,
        embed_dim=joint_dim(len(image_state["kernel"]), image_head, half.width or 0, text_head),
        state=state,
        notes=notes + image_notes + text_notes,
    )


def _image_half(arrays: Arrays, what: str, heads: int | None) -> tuple[State, State, int, list[str]]:
    """The tower's state, its head's state, its number of heads, and notes."""
    today, notes = image_arrays_today(arrays)
    found = _heads(today, "Transformer", what)
    if heads not in (None, found):
        raise UserError(f"--heads {heads}: the attention kernels of {what} have {found} heads")
    tower, head = split_head(today, what)
    return image_tower_state(tower, what), head, found, notes


def _heads(arrays: Arrays, encoder: str, what: str) -> int:
    """The number of heads, from the shape of the first query kernel."""
    query = arrays.get(f"{encoder}/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel")
    if query is None or query.ndim != 3:
        name = f"{encoder}/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel"
        raise UserError(f"{what}: not a big_vision tower: the array {name!r} is missing")
    return default_heads(query.shape[0], query.shape[1])


def split_head(arrays: Arrays, what: str = "the file") -> tuple[dict[str, Array], State]:
    """Split the arrays of a model into those of the tower and the state dict of the Linear that is its head.

    The state dict is empty for a model without a head.
    """
    tower = {name: array for name, array in arrays.items() if not name.startswith("head/")}
    source = Source(_tensors({name: array for name, array in arrays.items() if name.startswith("head/")}), what)
    state = {} if "head/kernel" not in source else {"weight": source.take("head/kernel").T.contiguous()}
    if "head/bias" in source:
        state["bias"] = source.take("head/bias")
    source.finish()
    return tower, state


def image_tower_state(arrays: Arrays, what: str = "the file") -> State:
    """The state dict of a FlexiViT, from the arrays of big_vision's `flexi` or `vit` model without its head (`split_head`).

    Raises UserError that lists the arrays that are missing or left over.
    """
    source = Source(_tensors(arrays), what)
    kernel = source.take("embedding/kernel").permute(3, 2, 0, 1)
    state = {
        "kernel": kernel,
        "bias": source.take("embedding/bias"),
        "posemb": square_grid(source.take("pos_embedding")[0], what),
    }
    if "cls" in source:
        state["cls"] = source.take("cls")
    state |= _encoder(source, "Transformer")
    if "MAPHead_0/probe" in source:
        state |= _map_head(source, "MAPHead_0")
    source.finish()
    return state


def text_tower_state(arrays: Arrays, what: str = "the file") -> State:
    """The state dict of a TextTransformer, from the arrays of big_vision's `text_transformer` without its head (`split_head`).

    Raises UserError that lists the arrays that are missing or left over.
    """
    source = Source(_tensors(arrays), what)
    state = {"token_embedding.weight": source.take("Embed_0/embedding"), "posemb": source.take("pos_embedding")}
    state |= _encoder(source, "Encoder_0")
    if "MAPHead_0/probe" in source:
        state |= _map_head(source, "MAPHead_0")
    source.finish()
    return state


def _tensors(arrays: Arrays) -> State:
    """The arrays as float32 tensors with memory of their own."""
    return {name: torch.from_numpy(np.asarray(array, dtype=np.float32).copy()) for name, array in arrays.items()}


def _encoder(source: Source, prefix: str) -> State:
    """The state of the blocks and of the last norm."""
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


def _map_head(source: Source, prefix: str) -> State:
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


def _norm(source: Source, theirs: str, ours: str) -> State:
    return {f"{ours}.weight": source.take(f"{theirs}/scale"), f"{ours}.bias": source.take(f"{theirs}/bias")}


def _mlp(source: Source, theirs: str, ours: str) -> State:
    return _dense(source, f"{theirs}/Dense_0", f"{ours}.fc1") | _dense(source, f"{theirs}/Dense_1", f"{ours}.fc2")


def _dense(source: Source, theirs: str, ours: str) -> State:
    """The state of a dense layer: kernel (in, out) -> weight [out, in]."""
    return {f"{ours}.weight": source.take(f"{theirs}/kernel").T.contiguous(), f"{ours}.bias": source.take(f"{theirs}/bias")}


def _projection(source: Source, name: str) -> tuple[Tensor, Tensor]:
    """The weight and the bias of q, k or v: kernel (D, heads, K) -> weight [heads * K, D]."""
    return source.take(f"{name}/kernel").flatten(1).T.contiguous(), source.take(f"{name}/bias").flatten()


def _attention_output(source: Source, theirs: str, ours: str) -> State:
    """The state of an attention's output layer: kernel (heads, K, D) -> weight [D, heads * K]."""
    kernel = source.take(f"{theirs}/kernel").flatten(0, 1)
    return {f"{ours}.weight": kernel.T.contiguous(), f"{ours}.bias": source.take(f"{theirs}/bias")}


def read_npz(path: Path) -> dict[str, Array]:
    """The arrays of an `.npz` file by name, without the prefix `params/`.

    Raises UserError for pickled objects and damaged files.
    """
    return {name.removeprefix("params/"): array for name, array in _read(path).items()}


def read_parameters(path: Path) -> tuple[dict[str, Array], int]:
    """The parameters by current names, and the number of arrays of a training state that were left out."""
    found = _read(path)
    for prefix in ("params/", "opt/target/"):
        parameters = beneath(found, prefix)
        if parameters:
            others = {name: array for name, array in found.items() if not name.startswith(prefix)}
            state = [name for name in others if name.startswith(_TRAINING_STATE)]
            found = parameters | {name: array for name, array in others.items() if name not in state}
            return renumber(found), len(state)
    return renumber(found), 0


def _read(path: Path) -> dict[str, Array]:
    """The arrays of an `.npz` file by their names in the file. Raises UserError if it cannot be read."""
    try:
        return {name: _bfloat16_widened(array) for name, array in read_arrays(path).items()}
    except (OSError, ValueError) as error:
        found = text_there(path) if path.is_file() else None
        if found is None and "BadZipFile" in str(error):
            found = "it is cut short, damaged or another format; download or copy it again"
        raise UserError(f"{path}: cannot read it as an .npz of arrays: {found or short_reason(error)}") from None


def _bfloat16_widened(array: Array) -> Array:
    """Convert bfloat16 to float32. numpy has no bfloat16 and stores it as two bytes without a type."""
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return array


def renumber(arrays: Arrays) -> dict[str, Array]:
    """Number the modules as Linen does.

    Before Linen, flax numbered all modules of a parent in one sequence (LayerNorm_0, MlpBlock_3). Now the numbers of each
    class start at 0.
    """
    numbers: dict[tuple[str, str], set[int]] = {}
    for parent, module, number in _modules(arrays):
        numbers.setdefault((parent, module), set()).add(number)
    rank = {key: {number: i for i, number in enumerate(sorted(found))} for key, found in numbers.items()}

    def today(name: str) -> str:
        """The current name of an array."""
        parts = name.split("/")
        for i, part in enumerate(name.split("/")[:-1]):
            match = _MODULE.match(part)
            if match:
                parent = "/".join(name.split("/")[:i])
                parts[i] = f"{match[1]}_{rank[parent, match[1]][int(match[2])]}"
        return "/".join(parts)

    return {today(name): array for name, array in arrays.items()}


def _modules(names: Iterable[str]) -> Iterable[tuple[str, str, int]]:
    """The parent, the class and the number of every numbered module in the names."""
    for name in names:
        parts = name.split("/")
        for i, part in enumerate(parts[:-1]):
            match = _MODULE.match(part)
            if match:
                yield "/".join(parts[:i]), match[1], int(match[2])


def image_arrays_today(arrays: Arrays) -> tuple[dict[str, Array], list[str]]:
    """The arrays of an image tower by current names, and notes on what was changed."""
    today, notes = unstack(arrays, "Transformer"), []
    for old in ("Transformer/posembed_input/pos_embedding", "Transformer/pos_embedding"):
        if old in today and "pos_embedding" not in today:
            today["pos_embedding"] = today.pop(old)
    if "probe" in today:
        inlined = ("MlpBlock_0/", "MultiHeadDotProductAttention_0/", "LayerNorm_0/", "probe")
        today = {f"MAPHead_0/{name}" if name.startswith(inlined) else name: array for name, array in today.items()}
    positions = today.get("pos_embedding")
    if positions is not None and positions.ndim == 3 and "cls" in today:
        side = round((positions.shape[1] - 1) ** 0.5)
        if side * side + 1 == positions.shape[1]:
            today["cls"] = np.asarray(today["cls"], np.float32) + np.asarray(positions[:, :1], np.float32)
            today["pos_embedding"] = positions[:, 1:]
            notes.append("the class token's position was added to the class token")
    return today, notes


def text_arrays_today(arrays: Arrays) -> tuple[dict[str, Array], list[str]]:
    """The arrays of a text tower by current names, and notes on what was changed."""
    today = unstack(arrays, "Encoder_0")
    extra = today.pop("Encoder_0/pos_embedding", None)
    if extra is None or "pos_embedding" not in today:
        return today, []
    today["pos_embedding"] = np.asarray(today["pos_embedding"], np.float32) + np.asarray(extra, np.float32)
    return today, ["position embeddings that were added twice were summed"]


def unstack(arrays: Arrays, encoder: str) -> dict[str, Array]:
    """Split blocks that lax.scan stores as one array per parameter, [depth, ...], into arrays for each block."""
    stacked = beneath(arrays, f"{encoder}/encoderblock/")
    apart = {name: array for name, array in arrays.items() if not name.startswith(f"{encoder}/encoderblock/")}
    for name, array in stacked.items():
        for layer, values in enumerate(array):
            apart[f"{encoder}/encoderblock_{layer}/{name}"] = values
    return apart
