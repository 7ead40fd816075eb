"""big_vision's `.npz` files: read without pickle, with the names of every age brought to today's.

What is brought up to date is what big_vision's own loaders do (models/vit.py fix_old_checkpoints, utils.py load_params,
models/proj/image_text/text_transformer.py load): a prefix of training checkpoints, module numbers from before Linen, position
embeddings inside the encoder or together with the class token's, a MAP head without a module, blocks stacked by lax.scan.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flexiclip.arrays import read_npz as read_arrays
from flexiclip.errors import UserError
from flexiclip.models.weights.files import beneath
from flexiclip.unreadable import short_reason, text_there

Array = NDArray[np.generic]
Arrays = Mapping[str, Array]

_MODULE = re.compile(r"([A-Z][A-Za-z]*)_(\d+)$")
_TRAINING_STATE = ("opt/", "extra/", "chrono/", "states/")


def read_npz(path: Path) -> dict[str, Array]:
    """The arrays of an `.npz` by name, a leading `params/` stripped. Pickled objects and damaged files raise UserError."""
    return {name.removeprefix("params/"): array for name, array in _read(path).items()}


def read_parameters(path: Path) -> tuple[dict[str, Array], int]:
    """(the parameters by today's names, how many arrays of a training state beside them were left out)."""
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
    try:
        return {name: _bfloat16_widened(array) for name, array in read_arrays(path).items()}
    except (OSError, ValueError) as error:
        found = text_there(path) if path.is_file() else None
        if found is None and "BadZipFile" in str(error):
            found = "it is cut short, damaged or another format; download or copy it again"
        raise UserError(f"{path}: cannot read it as an .npz of arrays: {found or short_reason(error)}") from None


def _bfloat16_widened(array: Array) -> Array:
    """numpy has no bfloat16 and stores it as two bytes without a type."""
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return array


def renumber(arrays: Arrays) -> dict[str, Array]:
    """Flax before Linen numbered all modules of a parent in one row (LayerNorm_0, MlpBlock_3); now each class starts at 0."""
    numbers: dict[tuple[str, str], set[int]] = {}
    for parent, module, number in _modules(arrays):
        numbers.setdefault((parent, module), set()).add(number)
    rank = {key: {number: i for i, number in enumerate(sorted(found))} for key, found in numbers.items()}

    def today(name: str) -> str:
        parts = name.split("/")
        for i, part in enumerate(name.split("/")[:-1]):
            match = _MODULE.match(part)
            if match:
                parent = "/".join(name.split("/")[:i])
                parts[i] = f"{match[1]}_{rank[parent, match[1]][int(match[2])]}"
        return "/".join(parts)

    return {today(name): array for name, array in arrays.items()}


def _modules(names: Iterable[str]) -> Iterable[tuple[str, str, int]]:
    for name in names:
        parts = name.split("/")
        for i, part in enumerate(parts[:-1]):
            match = _MODULE.match(part)
            if match:
                yield "/".join(parts[:i]), match[1], int(match[2])


def image_arrays_today(arrays: Arrays) -> tuple[dict[str, Array], list[str]]:
    """(an image tower's arrays by today's names, what had to be done for it)."""
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
    """(a text tower's arrays by today's names, what had to be done for it)."""
    today = unstack(arrays, "Encoder_0")
    extra = today.pop("Encoder_0/pos_embedding", None)
    if extra is None or "pos_embedding" not in today:
        return today, []
    today["pos_embedding"] = np.asarray(today["pos_embedding"], np.float32) + np.asarray(extra, np.float32)
    return today, ["position embeddings that were added twice were summed"]


def unstack(arrays: Arrays, encoder: str) -> dict[str, Array]:
    """Blocks that lax.scan keeps in one array each, [depth, ...], as blocks one by one."""
    stacked = beneath(arrays, f"{encoder}/encoderblock/")
    apart = {name: array for name, array in arrays.items() if not name.startswith(f"{encoder}/encoderblock/")}
    for name, array in stacked.items():
        for layer, values in enumerate(array):
            apart[f"{encoder}/encoderblock_{layer}/{name}"] = values
    return apart
