"""Weight files of torch's world as plain dicts of tensors: safetensors, and `.bin`, `.pt`, `.pth` without running a pickle.

torch.load(weights_only=True) unpickles tensors and containers and refuses everything else, so that a file from elsewhere cannot
run code here. What cannot be read is one line.
"""

from __future__ import annotations

import json
import mmap
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from flexiclip.errors import UserError

WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")
_SHARED = 4  # times that a tied tensor may stand in a state dict
_WRAPPERS = ("state_dict", "model", "model_state_dict")


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or torch file, by name. Raises UserError when it is damaged, foreign or needs unpickling."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read as safetensors ({error}); fetch it again") from None
    try:
        loaded = _load_torch(path)
    except Exception as error:  # torch's unpickler, zipfile and the constructors of tensors each have errors of their own
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path}: holds no tensors that can be read without unpickling ({first[:160]}); give a safetensors file, or one "
            "that torch.save wrote from a state dict"
        ) from None
    return _state_of(loaded, path)


def _load_torch(path: Path) -> Any:
    """What torch.save wrote, nothing of it run, and no more memory taken than the file accounts for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of unusual pickles; either they are read, or the error says it
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\3\4"  # what torch goes by; zipfile also takes what only ends like an archive
        if zipped:
            with zipfile.ZipFile(path) as archive:
                inflated = sum(member.file_size for member in archive.infolist())
            if inflated > path.stat().st_size:
                raise ValueError(f"a compressed archive that would become {inflated} bytes; torch writes none")
            return torch.load(path, map_location="cpu", weights_only=True)
        # Before its zip files torch wrote pickles one after the other, in which a text may say that it is 4 GB long: a file would
        # make room for it, a mapped one gives what there is.
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return torch.load(cast(BinaryIO, view), map_location="cpu", weights_only=True)


def read_folder(folder: Path) -> dict[str, Tensor]:
    """The weights of a Hugging Face folder, in one file or in shards that an index lists."""
    for name in WEIGHT_NAMES:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return read_state(folder / name)
        if index.is_file():
            shards = _shards(read_json(index).get("weight_map"), index)
            return {key: tensor for shard in shards for key, tensor in read_state(folder / Path(shard).name).items()}
    raise UserError(f"{folder}: no weights there; expected one of {', '.join(WEIGHT_NAMES)}")


def _shards(weight_map: Any, index: Path) -> list[str]:
    """The file names of an index. They are taken without their folders, so that none lies elsewhere."""
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError(f"{index}: its weight_map is no mapping from tensors to files")
    return sorted(set(weight_map.values()))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; UserError when it is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a JSON object, not a {type(data).__name__}")
    return data


def read_license(folder: Path) -> str | None:
    """The licence that the model card of a folder names in its first lines (README.md, `license: ...`), if any."""
    try:
        head = (folder / "README.md").read_text(encoding="utf-8", errors="replace")[:4000]
    except OSError:
        return None
    for line in head.splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip() == "license" and value.strip():
            return value.strip().strip("\"'")
    return None


def _state_of(loaded: Any, path: Path) -> dict[str, Tensor]:
    for name in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(name), dict):
            loaded = loaded[name]
            break
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise UserError(f"{path}: not a state dict: expected names with tensors")
    if not all(isinstance(name, str) for name in loaded):
        raise UserError(f"{path}: not a state dict: expected names with tensors")
    numbers, stored = sum(tensor.nbytes for tensor in loaded.values()), path.stat().st_size
    if numbers > _SHARED * stored + 2**20:  # a tensor of stride 0 is as large as it says, out of four bytes
        raise UserError(f"{path}: its tensors would take {numbers} bytes, the file has {stored}")
    if all(name.startswith("module.") for name in loaded):
        return {name.removeprefix("module."): tensor for name, tensor in loaded.items()}
    return dict(loaded)
