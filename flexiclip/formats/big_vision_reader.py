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
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from flexiclip.config.schema import PatchConfig
from flexiclip.errors import UserError
from flexiclip.files import text_instead
from flexiclip.formats.imported import Imported, Source, State, default_heads, image_half, reader, sentencepiece_config, text_half
from flexiclip.formats.layouts import (
    BIG_VISION_HEAD,
    BIG_VISION_IMAGE,
    BIG_VISION_SCALARS,
    BIG_VISION_TEXT,
    Layout,
    read_layout,
    set_grid,
)
from flexiclip.libraries import short_reason
from flexiclip.tensor_files import Array, beneath
from flexiclip.tensor_files import read_npz as read_arrays

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
    what = str(path)
    arrays, training = read_parameters(path)
    notes = [f"{training} arrays of the training state were left out"] if training else []
    if "Embed_0/embedding" in arrays or "Encoder_0/encoder_norm/scale" in arrays:
        raise UserError(f"{path}: a text tower alone; give a file with an image tower, or with both (img/, txt/)")
    if any(name.startswith("img/") for name in arrays):
        imported = _two_towers(arrays, what, text, heads, image_size)
    else:
        imported = _image_alone(arrays, what, heads, image_size)
    imported.notes[:0] = notes
    return imported


def _image_alone(arrays: Arrays, what: str, heads: int | None, image_size: int | None) -> Imported:
    """Import a file that has only an image tower."""
    state, head, found, notes = _image_half(arrays, what, heads)
    kernel, grid = state["kernel"].shape[-1], state["posemb"].shape[-1]
    flexible = (kernel, grid) == _FLEXIVIT[:2] and image_size in (None, _FLEXIVIT[2])
    if flexible and image_size is None:
        image_size = _FLEXIVIT[2]
        notes.append("a 32x32 kernel over a 7x7 grid: taken for a FlexiViT of 240 px; --image-size 224 for a plain ViT-B/32")
    seqhw = PatchConfig().seqhw if flexible else ()
    return Imported(image_half(state, head, found, image_size, {}), seqhw=seqhw, notes=notes)


def _two_towers(arrays: Arrays, what: str, text: Path | None, heads: int | None, image_size: int | None) -> Imported:
    """Import a file with an image tower and a text tower."""
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
    state, head = read_tower(today, BIG_VISION_TEXT, f"{what}: txt")
    pool = "map" if "map_head.probe" in state else "last"
    scalars = Source(_tensors({n: a for n, a in arrays.items() if not n.startswith(("img/", "txt/"))}), what)
    found = read_layout(scalars, BIG_VISION_SCALARS)
    scalars.finish()
    return Imported(
        image_half(image_state, image_head, image_heads, image_size, {}),
        text_half(state, head, text_heads, {"pad_mask": False, "pool": pool}),
        found,
        sentencepiece_config(text, state["posemb"].shape[1], len(state["token_embedding.weight"])),
        notes=image_notes + text_notes,
    )


def _image_half(arrays: Arrays, what: str, heads: int | None) -> tuple[State, State, int, list[str]]:
    """Return the state of the image tower, that of its head, its number of heads, and notes."""
    today, notes = image_arrays_today(arrays)
    found = _heads(today, "Transformer", what)
    if heads not in (None, found):
        raise UserError(f"--heads {heads}: the attention kernels of {what} have {found} heads")
    return *read_tower(today, BIG_VISION_IMAGE, what), found, notes


def _heads(arrays: Arrays, encoder: str, what: str) -> int:
    """Return the number of heads, from the shape of the first query kernel."""
    name = f"{encoder}/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel"
    query = arrays.get(name)
    if query is None or query.ndim != 3:
        raise UserError(f"{what}: not a big_vision tower: the array {name!r} is missing")
    return default_heads(query.shape[0], query.shape[1])


def read_tower(arrays: Arrays, layout: Layout, what: str = "the file") -> tuple[State, State]:
    """Return the state dict of a tower and that of the Linear that is its head, which is empty if there is none.

    `layout` is BIG_VISION_IMAGE or BIG_VISION_TEXT. Raises UserError that lists the arrays that are missing or left over.
    """
    source = Source(_tensors(arrays), what)
    state, head = read_layout(source, layout), read_layout(source, BIG_VISION_HEAD)
    source.finish()
    if layout is BIG_VISION_IMAGE:
        set_grid(state, what)
    return state, head


def _tensors(arrays: Arrays) -> State:
    """Return the arrays as float32 tensors with memory of their own."""
    return {name: torch.from_numpy(np.asarray(array, dtype=np.float32).copy()) for name, array in arrays.items()}


def read_npz(path: Path) -> dict[str, Array]:
    """Return the arrays of an `.npz` file by name, without the prefix `params/`.

    Raises UserError for pickled objects and damaged files.
    """
    return {name.removeprefix("params/"): array for name, array in _read(path).items()}


def read_parameters(path: Path) -> tuple[dict[str, Array], int]:
    """Return the parameters by current names, and the number of arrays of a training state that were left out."""
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
    """Return the arrays of an `.npz` file by their names in the file. Raises UserError if it cannot be read."""
    try:
        return {name: _bfloat16_widened(array) for name, array in read_arrays(path).items()}
    except (OSError, ValueError) as error:
        found = text_instead(path) if path.is_file() else None
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
    for name in arrays:
        for _, parent, module, number in _modules(name):
            numbers.setdefault((parent, module), set()).add(number)
    today = {}
    for name, array in arrays.items():
        parts = name.split("/")
        for i, parent, module, number in _modules(name):
            parts[i] = f"{module}_{sorted(numbers[parent, module]).index(number)}"
        today["/".join(parts)] = array
    return today


def _modules(name: str) -> Iterator[tuple[int, str, str, int]]:
    """Yield the place, the parent, the class and the number of every numbered module in a name."""
    parts = name.split("/")
    for i, part in enumerate(parts[:-1]):
        if match := _MODULE.match(part):
            yield i, "/".join(parts[:i]), match[1], int(match[2])


def image_arrays_today(arrays: Arrays) -> tuple[dict[str, Array], list[str]]:
    """Return the arrays of an image tower by current names, and notes on what was changed."""
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
    """Return the arrays of a text tower by current names, and notes on what was changed."""
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
